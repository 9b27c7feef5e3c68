"""Condition tokens: the reference frame and the packed motion frames, with their places in time."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from serve_app.model.rope import RopeGrid, RopePrecision, RopeTable, join, packed_positions

REFERENCE_POSITION = 30
"""The reference frame stands at this frame position or later, always ahead of the video by the reference distance."""

DropMode = Literal["padd", "drop"]
"""What becomes of motion buckets left out: "padd" zeroes their frames (the released model), "drop" their tokens."""


class _Bucket(NamedTuple):
    """Motion latent frames of one age: how many, how much rows and columns shrink, where their tokens stand in time."""

    frames: int
    shrink: int
    positions: tuple[int, ...]


_BUCKETS = (_Bucket(1, 1, (-1,)), _Bucket(2, 2, (-3,)), _Bucket(16, 4, (-19, -14, -9, -4)))
MOTION_LATENTS = sum(bucket.frames for bucket in _BUCKETS)


class FramePacker(nn.Module):
    """Turns the last 19 motion latent frames into few tokens: the older, the coarser."""

    def __init__(self, in_dim: int, dim: int, drop_mode: DropMode) -> None:
        super().__init__()
        self.drop_mode = drop_mode
        self.proj = nn.Conv3d(in_dim, dim, (1, 2, 2), stride=(1, 2, 2))
        self.proj_2x = nn.Conv3d(in_dim, dim, (2, 4, 4), stride=(2, 4, 4))
        self.proj_4x = nn.Conv3d(in_dim, dim, (4, 8, 8), stride=(4, 8, 8))

    def forward(self, motion_CTHW: Tensor, *, add_last_motion: int = 2) -> Tensor:
        """Returns tokens [1, N, dim] in the order newest, 2x-packed pair, 4x-packed 16.

        Missing old frames are zero. `add_last_motion` 1 leaves the newest out, 0 the pair as well.
        """
        left_out = _left_out(add_last_motion)
        last = motion_CTHW[:, -MOTION_LATENTS:]
        padded = functional.pad(last, (0, 0, 0, 0, MOTION_LATENTS - last.shape[1], 0))
        zeroed = sum(bucket.frames for bucket in _BUCKETS[:left_out])
        padded = torch.cat((padded[:, : MOTION_LATENTS - zeroed], torch.zeros_like(padded[:, :zeroed])), dim=1)
        oldest, middle, newest = padded[None].split([bucket.frames for bucket in reversed(_BUCKETS)], dim=2)
        packed = (self.proj(newest), self.proj_2x(middle), self.proj_4x(oldest))
        kept = packed[left_out:] if self.drop_mode == "drop" else packed
        return torch.cat([tokens.flatten(2).transpose(1, 2) for tokens in kept], dim=1)


def motion_table(
    latent_height: int,
    latent_width: int,
    *,
    head_dim: int,
    precision: RopePrecision,
    device: torch.device,
    drop_mode: DropMode = "padd",
    add_last_motion: int = 2,
) -> RopeTable:
    """Returns the rotary table of the packed motion tokens; their frames are negative: -1; -3; -19, -14, -9, -4."""
    rows, columns = latent_height // 2, latent_width // 2
    kept = _BUCKETS[_left_out(add_last_motion) :] if drop_mode == "drop" else _BUCKETS
    return join(
        [
            RopeGrid(
                packed_positions(rows, rows // bucket.shrink),
                packed_positions(columns, columns // bucket.shrink),
                head_dim=head_dim,
                precision=precision,
                device=device,
            ).at(bucket.positions)
            for bucket in kept
        ]
    )


def reference_position(first_frame: int, distance: int) -> int:
    """Returns the frame position of the reference: 30 + max(0, first_frame - (30 - distance))."""
    return REFERENCE_POSITION + max(0, first_frame - (REFERENCE_POSITION - distance))


def _left_out(add_last_motion: int) -> int:
    return 2 - add_last_motion
