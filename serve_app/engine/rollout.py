"""Rollout: the denoising side of one video. Call (block, step) needs only (block, step - 1) and (block - 1, step).

All state of the video is here, so videos in a row or interleaved never meet. A rank owns some of the steps and
makes their calls, in the order of the blocks; it holds the caches of its steps alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.engine.conditions import Conditions
from serve_app.model.audio_injector import AudioConditions
from serve_app.model.dit import CausalDiT
from serve_app.model.flow_match import NoiseSchedule, euler_step
from serve_app.model.kv_cache import BlockMemory, Sink, WindowCache
from serve_app.model.reference import motion_table, reference_position
from serve_app.model.rope import RopeGrid, RopePrecision, RopeTable, join
from serve_app.planning.geometry import (
    LATENT_FRAMES_PER_BLOCK,
    BlockPosition,
    Size,
    Timeline,
)

ReferenceDistance = Callable[[int, int], int]
"""(block, step) -> how many frames at least the reference stands ahead of the block."""

MIN_DISTANCE, MAX_DISTANCE = 4, 30


def drawn_distance(seed: int) -> ReferenceDistance:
    """Returns distances drawn uniformly from 4..30: a pure function of (seed, block, step), equal on all ranks."""
    return lambda block, step: random.Random(f"{seed}/{block}/{step}").randint(MIN_DISTANCE, MAX_DISTANCE)  # noqa: S311


@dataclass(frozen=True)
class RolloutPlan:
    """The numbers of one rollout."""

    size: Size
    timeline: Timeline
    schedule: NoiseSchedule
    seed: int
    replace_reference: bool
    distance: ReferenceDistance
    rope_precision: RopePrecision = "float16"


class ClipNoise:
    """The starting latents of the blocks of one video."""

    def __init__(self, plan: RolloutPlan, num_channels: int) -> None:
        self._plan = plan
        self._num_channels = num_channels
        self._clip: int | None = None
        self._noise_CTHW = torch.empty(0)

    def of(self, block: BlockPosition) -> Tensor:
        """Returns float32 [16, 3, h, w], on the CPU: a slice of its clip's noise, which is seeded seed + clip."""
        if self._clip != block.clip:
            self._clip, self._noise_CTHW = block.clip, self._draw(block.clip)
        start = block.in_clip * LATENT_FRAMES_PER_BLOCK
        return self._noise_CTHW[:, start : start + LATENT_FRAMES_PER_BLOCK]

    def _draw(self, clip: int) -> Tensor:
        """Draws on the CPU in float32, whatever the device, so that every machine starts from the same noise."""
        size = self._plan.size
        frames = self._plan.timeline.window_latent_frames
        shape = (self._num_channels, frames, size.latent_height, size.latent_width)
        generator = torch.Generator().manual_seed(self._plan.seed + clip)
        return torch.randn(shape, generator=generator, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class _PreparedBlock:
    """What all steps of one block share."""

    position: BlockPosition
    audio: AudioConditions
    rope: RopeTable


class Rollout:
    """Denoises the blocks of one video, one (block, step) call at a time."""

    def __init__(self, dit: CausalDiT, conditions: Conditions, plan: RolloutPlan, *, steps: range) -> None:
        """Prefills the sink; `steps` are the denoising steps that this rank owns."""
        self.plan = plan
        self._dit = dit
        self._conditions = conditions
        self._device = dit.head.head.weight.device
        self._text = dit.embed_text(conditions.text)
        self._grid = RopeGrid(
            range(plan.size.latent_height // 2),
            range(plan.size.latent_width // 2),
            head_dim=dit.config.head_dim,
            precision=plan.rope_precision,
            device=self._device,
        )
        self._motion_rope = motion_table(
            plan.size.latent_height,
            plan.size.latent_width,
            head_dim=dit.config.head_dim,
            precision=plan.rope_precision,
            device=self._device,
        )
        self._sink = self.prefill(conditions.reference)
        # All at once, before anything passing: what does not fit shows here, and memory stays in one piece.
        self._windows = {step: self._empty_window() for step in steps}
        self._times = {step: dit.embed_time(plan.schedule.timesteps[step]) for step in steps}
        self._block: _PreparedBlock | None = None

    def begin(self, block: BlockPosition, voice: Tensor) -> None:
        """Prepares what the steps of a block share; voice [1, 25, C, 12]."""
        first = block.first_latent_frame
        self._block = _PreparedBlock(
            position=block,
            audio=self._dit.embed_audio(voice.to(self._device)),
            rope=self._grid.at(range(first, first + LATENT_FRAMES_PER_BLOCK)),
        )

    def denoise(self, latents_CTHW: Tensor, step: int) -> Tensor:
        """Makes call (block begun, step): returns the latents after this step, float32 [16, 3, h, w]."""
        assert self._block is not None, "no block was begun"
        velocity = self._dit(
            latents_CTHW,
            time=self._times[step],
            text=self._text,
            audio=self._block.audio,
            rope=self._block.rope,
            memory=self._memory(self._block.position, step),
        )
        sigmas = self.plan.schedule.sigmas
        return euler_step(latents_CTHW, velocity, sigma=sigmas[step], next_sigma=sigmas[step + 1])

    def replace_reference(self, reference_C1HW: Tensor) -> None:
        """Takes another reference from the next call on."""
        self._sink = Sink()  # the old one goes before the new one comes
        self._sink = self.prefill(reference_C1HW)

    def prefill(self, reference_C1HW: Tensor) -> Sink:
        """Returns the sink of this reference and the motion latents."""
        return self._dit.prefill_sink(
            reference_C1HW,
            self._conditions.motion,
            text=self._text,
            rope=self._sink_rope(first_frame=0, distance=MAX_DISTANCE),
        )

    def _memory(self, block: BlockPosition, step: int) -> BlockMemory:
        tokens_per_block = LATENT_FRAMES_PER_BLOCK * self.plan.size.tokens_per_frame
        blocks_seen = min(block.index + 1, self.plan.timeline.blocks_per_clip)
        return BlockMemory(
            sink=self._sink,
            window=self._windows[step],
            sink_rope=self._sink_rope(
                first_frame=block.first_latent_frame, distance=self.plan.distance(block.index, step)
            ),
            start=block.in_clip * tokens_per_block,
            filled=blocks_seen * tokens_per_block,
        )

    def _empty_window(self) -> WindowCache:
        keys = self._sink.keys[0]
        return WindowCache(
            num_layers=self._dit.config.num_layers,
            num_tokens=self.plan.timeline.window_latent_frames * self.plan.size.tokens_per_frame,
            num_heads=keys.shape[2],
            head_dim=keys.shape[3],
            like=keys,
        )

    def _sink_rope(self, *, first_frame: int, distance: int) -> RopeTable:
        reference = self._grid.at([reference_position(first_frame, distance)])
        return join([reference, self._motion_rope])
