"""Flow-match noise schedule and its Euler step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
SHIFT = 3.0


@dataclass(frozen=True)
class NoiseSchedule:
    """`timesteps`: one per step, 1000 (pure noise) downwards; `sigmas`: one more, ending at 0."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def steps(self) -> range:
        return range(len(self.timesteps))


def euler_schedule(num_steps: int) -> NoiseSchedule:
    """Returns the schedule of the reference: evenly spaced sigmas, shifted by 3.

    shift(s) = 3 s / (1 + 2 s). The lowest sigma comes out of the training table, which is shifted
    already, and is shifted again: a property of the published sampler that the distilled model learned with.
    """
    lowest = _shift(1.0 / TRAIN_TIMESTEPS)
    even = torch.linspace(1.0, lowest, num_steps, dtype=torch.float64)
    sigmas = _shift(even).float()
    timesteps = (sigmas * TRAIN_TIMESTEPS).tolist()
    return NoiseSchedule(timesteps=tuple(timesteps), sigmas=(*sigmas.tolist(), 0.0))


_Sigma = TypeVar("_Sigma", float, Tensor)


def _shift(sigma: _Sigma) -> _Sigma:
    return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)


def euler_step(latents: Tensor, velocity: Tensor, *, sigma: float, next_sigma: float) -> Tensor:
    """Returns x + (sigma' - sigma) v, computed in float32; any equal shapes."""
    return latents.float() + (next_sigma - sigma) * velocity.float()
