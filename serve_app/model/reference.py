"""Condition tokens: the reference frame and the packed motion frames, with their places in time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from serve_app.model.rope import RopePrecision, RopeTable, grid_table, join, packed_positions

BUCKETS = (1, 2, 16)
"""Motion latent frames by age: the newest, the two before, the sixteen before those."""

MOTION_LATENTS = sum(BUCKETS)
REFERENCE_POSITION = 30
"""The reference frame stands at this frame position or later, always ahead of the video by the reference distance."""


class FramePacker(nn.Module):
    """Turns the last 19 motion latent frames into few tokens: the older, the coarser."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_dim, dim, (1, 2, 2), stride=(1, 2, 2))
        self.proj_2x = nn.Conv3d(in_dim, dim, (2, 4, 4), stride=(2, 4, 4))
        self.proj_4x = nn.Conv3d(in_dim, dim, (4, 8, 8), stride=(4, 8, 8))

    def forward(self, motion_CTHW: Tensor) -> Tensor:
        """Returns tokens [1, N, dim] in the order newest, 2x-packed pair, 4x-packed 16; missing old frames are zero."""
        last = motion_CTHW[:, -MOTION_LATENTS:]
        padded = functional.pad(last, (0, 0, 0, 0, MOTION_LATENTS - last.shape[1], 0))
        oldest, middle, newest = padded[None].split(BUCKETS[::-1], dim=2)
        packed = (self.proj(newest), self.proj_2x(middle), self.proj_4x(oldest))
        return torch.cat([tokens.flatten(2).transpose(1, 2) for tokens in packed], dim=1)


def motion_table(latent_height: int, latent_width: int, *, head_dim: int, precision: RopePrecision) -> RopeTable:
    """Returns the rotary table of the packed motion tokens: negative frames -1; -3; -19, -14, -9, -4."""
    rows, columns = latent_height // 2, latent_width // 2
    tables = [
        grid_table(
            frames,
            packed_positions(rows, rows // shrink),
            packed_positions(columns, columns // shrink),
            head_dim=head_dim,
            precision=precision,
        )
        for frames, shrink in (([-1], 1), ([-3], 2), ([-19, -14, -9, -4], 4))
    ]
    return join(tables)


def reference_position(first_frame: int, distance: int) -> int:
    """Returns the frame position of the reference: 30 + max(0, first_frame - (30 - distance))."""
    return REFERENCE_POSITION + max(0, first_frame - (REFERENCE_POSITION - distance))
