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


def euler_schedule(num_steps: int, *, shift: float = SHIFT) -> NoiseSchedule:
    """Returns the schedule of the reference: evenly spaced sigmas, shifted.

    shifted(s) = shift s / (1 + (shift - 1) s). The lowest sigma comes out of the training table, which is shifted
    already, and is shifted again: a property of the published sampler that the distilled model learned with.
    """
    lowest = _shifted(1.0 / TRAIN_TIMESTEPS, shift)
    even = torch.linspace(1.0, lowest, num_steps, dtype=torch.float64)
    sigmas = _shifted(even, shift).float()
    timesteps = (sigmas * TRAIN_TIMESTEPS).tolist()
    return NoiseSchedule(timesteps=tuple(timesteps), sigmas=(*sigmas.tolist(), 0.0))


_Sigma = TypeVar("_Sigma", float, Tensor)


def _shifted(sigma: _Sigma, shift: float) -> _Sigma:
    return shift * sigma / (1 + (shift - 1) * sigma)


def euler_step(latents: Tensor, velocity: Tensor, *, sigma: float, next_sigma: float) -> Tensor:
    """Returns x + (sigma' - sigma) v, computed in float32; any equal shapes."""
    return latents.float() + (next_sigma - sigma) * velocity.float()
