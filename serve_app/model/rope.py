"""Rotary position tables over (frame, row, column), computed where they are needed: no table has an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

RopePrecision = Literal["float16", "float64"]
"""The reference rounds cos and sin to float16 (about 1e-4 on the output): the trained model expects that."""

BASE = 10_000.0


@dataclass(frozen=True, eq=False)
class RopeTable:
    """cos and sin, each float32 [tokens, head_dim / 2]."""

    cos: Tensor
    sin: Tensor

    def __len__(self) -> int:
        return self.cos.shape[0]

    def to(self, device: torch.device) -> RopeTable:
        return RopeTable(self.cos.to(device), self.sin.to(device))

    def rotate(self, x_BLHD: Tensor) -> Tensor:
        """Rotates the adjacent channel pairs of x [B, L, H, D]; the product is float32, the result of x's dtype."""
        pairs = x_BLHD.float().unflatten(-1, (-1, 2))
        even, odd = pairs.unbind(-1)
        cos, sin = self.cos[:, None], self.sin[:, None]
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return rotated.flatten(-2).to(x_BLHD.dtype)


def join(tables: Sequence[RopeTable]) -> RopeTable:
    """Concatenates tables along the tokens."""
    return RopeTable(torch.cat([t.cos for t in tables]), torch.cat([t.sin for t in tables]))


def grid_table(
    frames: Sequence[int], rows: Sequence[int], columns: Sequence[int], *, head_dim: int, precision: RopePrecision
) -> RopeTable:
    """Returns the table of the grid frames x rows x columns, in token order (frame, row, column).

    Of the c = head_dim / 2 channel pairs, c // 3 turn with the row, c // 3 with the column and the rest
    with the frame. Positions may be negative.
    """
    pairs = head_dim // 2
    split = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    shape = (len(frames), len(rows), len(columns))
    angles = torch.cat(
        [
            _angles(positions, width).view(*_only(axis, len(positions)), width).expand(*shape, width)
            for axis, (positions, width) in enumerate(zip((frames, rows, columns), split, strict=True))
        ],
        dim=-1,
    ).flatten(0, 2)
    rounding = torch.float16 if precision == "float16" else torch.float64
    return RopeTable(angles.cos().to(rounding).float(), angles.sin().to(rounding).float())


def packed_positions(full: int, packed: int) -> list[int]:
    """Returns the positions of `packed` rows or columns spread over `full`: int(linspace(0, full - 1))."""
    return [int(position) for position in np.linspace(0, full - 1, packed)]


def _angles(positions: Sequence[int], pairs: int) -> Tensor:
    frequencies = BASE ** (-torch.arange(pairs, dtype=torch.float64) / max(pairs, 1))
    return torch.outer(torch.tensor(positions, dtype=torch.float64), frequencies)


def _only(axis: int, length: int) -> tuple[int, int, int]:
    return (length if axis == 0 else 1, length if axis == 1 else 1, length if axis == 2 else 1)
