"""Reads the reference data: cases are found by globbing, shapes and lists come from the JSON files."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from serve_app.model.checkpoint import Placement

GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent.parent / "golden")
CPU_FLOAT32 = Placement(torch.device("cpu"), torch.float32)


@dataclass(frozen=True, eq=False)
class Golden:
    """One JSON file and the tensors beside it."""

    path: Path
    spec: dict[str, Any]
    tensors: dict[str, Tensor]

    def weights(self, prefix: str = "w.") -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def cases(folder: str) -> list[Path]:
    """The JSON files of a folder that have tensors; never empty."""
    found = sorted(p for p in (GOLDEN_DIR / folder).glob("*.json") if p.with_suffix(".safetensors").exists())
    assert found, f"no reference cases in {GOLDEN_DIR / folder}"
    return found


def load(path: Path) -> Golden:
    spec = json.loads(path.read_text())
    return Golden(path, spec, load_file(path.with_suffix(".safetensors")))


def load_weights(golden: Golden, key: str = "weights") -> dict[str, Tensor]:
    """The weight file that a case names, relative to its folder."""
    return load_file(golden.path.parent / golden.spec[key].split(" ")[0])


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite where anything is not a number, so that no maximum swallows it."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    if not expected.numel():
        return 0.0
    error = float((actual.double() - expected.double()).abs().max())
    return error if math.isfinite(error) else math.inf
