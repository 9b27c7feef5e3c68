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


class RopeGrid:
    """Tables of a grid of rows and columns at any frames: what turns with row and column is made once.

    Of the c = head_dim / 2 channel pairs, c // 3 turn with the row, c // 3 with the column and the rest
    with the frame. Positions may be negative.
    """

    def __init__(
        self,
        rows: Sequence[int],
        columns: Sequence[int],
        *,
        head_dim: int,
        precision: RopePrecision,
        device: torch.device,
    ) -> None:
        pairs = head_dim // 2
        self._frame_pairs = pairs - 2 * (pairs // 3)
        self._precision = precision
        by_row, by_column = _angles(rows, pairs // 3), _angles(columns, pairs // 3)
        shape = (len(rows), len(columns), -1)
        angles = torch.cat((by_row[:, None].expand(shape), by_column[None].expand(shape)), dim=-1).flatten(0, 1)
        self._space = _rounded(angles, precision).to(device)

    def at(self, frames: Sequence[int]) -> RopeTable:
        """Returns the table of frames x rows x columns, in token order (frame, row, column)."""
        time = _rounded(_angles(frames, self._frame_pairs), self._precision).to(self._space.cos.device)
        shape = (len(frames), len(self._space), -1)

        def spread(by_frame: Tensor, by_place: Tensor) -> Tensor:
            return torch.cat((by_frame[:, None].expand(shape), by_place[None].expand(shape)), dim=-1).flatten(0, 1)

        return RopeTable(spread(time.cos, self._space.cos), spread(time.sin, self._space.sin))


def packed_positions(full: int, packed: int) -> list[int]:
    """Returns the positions of `packed` rows or columns spread over `full`: int(linspace(0, full - 1))."""
    return [int(position) for position in np.linspace(0, full - 1, packed)]


def _rounded(angles: Tensor, precision: RopePrecision) -> RopeTable:
    rounding = torch.float16 if precision == "float16" else torch.float64
    return RopeTable(angles.cos().to(rounding).float(), angles.sin().to(rounding).float())


def _angles(positions: Sequence[int], pairs: int) -> Tensor:
    frequencies = BASE ** (-torch.arange(pairs, dtype=torch.float64) / max(pairs, 1))
    return torch.outer(torch.tensor(positions, dtype=torch.float64), frequencies)
