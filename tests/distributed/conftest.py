"""A small checkpoint with many heads, so that they can be shared by 2, 3 and 4 ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.model.random_checkpoint import write_checkpoint
from tests.small_model import SMALL

MANY_HEADS = replace(SMALL, name="many-heads", dit=replace(SMALL.dit, dim=96, num_heads=12))


@pytest.fixture(scope="session", name="checkpoint")
def _checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many-heads") / "ckpt"
    write_checkpoint(root, MANY_HEADS)
    return root
