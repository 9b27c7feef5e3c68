"""Verifies a checkpoint folder: every tensor of every network is read, fits, and holds numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from serve_app.errors import CheckpointError
from serve_app.model.checkpoint import Network, fitting
from serve_app.model.full_checkpoint import FullCheckpoint


@dataclass(frozen=True)
class NetworkReport:
    """What one network of the folder holds; `problem` is empty when all is well."""

    role: str
    num_tensors: int
    num_parameters: int
    problem: str


def verify(root: Path) -> Iterator[NetworkReport]:
    """Yields a report per network, holding one tensor at a time; raises CheckpointError for another kind of folder."""
    checkpoint = FullCheckpoint(root)
    for role, find in checkpoint.networks().items():
        yield _read_through(role, find)
    yield _read_tokenizer(checkpoint)


def _read_through(role: str, find: Callable[[], Network[Any]]) -> NetworkReport:
    num_tensors = num_parameters = 0
    not_finite = []
    try:
        network = find()
        for name, tensor in fitting(network.module, network.tensors, source=str(network.file)):
            num_tensors += 1
            num_parameters += tensor.numel()
            if not torch.isfinite(tensor).all():
                not_finite.append(name)
    except CheckpointError as error:
        return NetworkReport(role, num_tensors, num_parameters, str(error))
    problem = f"{len(not_finite)} tensors hold NaN or infinity, first {not_finite[0]}" if not_finite else ""
    return NetworkReport(role, num_tensors, num_parameters, problem)


def _read_tokenizer(checkpoint: FullCheckpoint) -> NetworkReport:
    try:
        checkpoint.tokenizer(text_len=1)
    except CheckpointError as error:
        return NetworkReport("tokenizer", 0, 0, str(error))
    return NetworkReport("tokenizer", 0, 0, "")
