"""Imported once by the process from which ranks are forked; one thread, for threads do not survive a fork."""

import torch

from serve_app.engine import conditioning, rank_program
from serve_app.model import full_checkpoint

torch.set_num_threads(1)

__all__ = ["conditioning", "full_checkpoint", "rank_program"]
