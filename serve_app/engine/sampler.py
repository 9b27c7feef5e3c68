"""The sequential loop: one rank makes all calls, block after block, step after step."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from serve_app.engine.rollout import Rollout
from serve_app.planning.geometry import BlockPosition


def sample(rollout: Rollout) -> Iterator[tuple[BlockPosition, Tensor]]:
    """Yields each block with its finished latents, float32 [16, 3, h, w]."""
    for block in rollout.plan.timeline.blocks():
        latents = rollout.noise(block)
        for step in rollout.plan.schedule.steps:
            latents = rollout.denoise(latents, block, step)
        rollout.finished(latents, block)
        yield block, latents
