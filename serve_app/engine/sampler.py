"""The stages of one video as functions from messages to messages: begin the blocks, denoise them, decode them.

On one rank they are chained; between ranks the same messages travel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from ray_cluster.program import RunControl
from serve_app.engine.conditions import Conditions
from serve_app.engine.decoding import FrameDecoder
from serve_app.engine.messages import Message, Opening, Pause, WorkingBlock
from serve_app.engine.rollout import ClipNoise, Rollout, RolloutPlan
from serve_app.model.dit import CausalDiT
from serve_app.model.vae import VideoVAE
from serve_app.planning.geometry import FRAMES_PER_BLOCK, BlockPosition


class Voice(Protocol):
    """The features of the speech by video frame: [1, 25, C, frames]."""

    def frames(self, video_frames: range) -> Tensor: ...


class ReferenceReturn(Protocol):
    """Brings the first frame of the finished block 0 to all stages (`distributed.timestep_pipeline`)."""

    def block_0_passed(self, latents_CTHW: Tensor) -> None: ...

    def take(self) -> Tensor: ...

    def settle(self) -> None: ...


def begin_blocks(
    conditions: Conditions,
    voice: Voice,
    plan: RolloutPlan,
    *,
    control: RunControl,
    device: torch.device,
    pause_s: float,
) -> Iterator[Message]:
    """Yields the opening and every block with its noise; ends early at the first block border after a cancel.

    While the consumer is too far behind, a Pause comes every `pause_s`: the others shall not take it for a failure.
    """
    # Encodes the first window of the speech, up to a minute, before the opening makes the caches of the video.
    voice.frames(range(FRAMES_PER_BLOCK))
    yield Opening(conditions)
    noise = ClipNoise(plan, num_channels=conditions.motion.shape[0])
    for block in plan.timeline.blocks():
        while not control.wait_for_turn(block.index, timeout_s=pause_s):
            yield Pause()
        if control.is_cancelled():
            return
        heard = voice.frames(range(block.index * FRAMES_PER_BLOCK, (block.index + 1) * FRAMES_PER_BLOCK))
        yield WorkingBlock(block, noise.of(block).to(device), heard.to(device))


def denoise(
    messages: Iterator[Message],
    dit: CausalDiT,
    plan: RolloutPlan,
    *,
    steps: range,
    references: ReferenceReturn,
    control: RunControl,
) -> Iterator[Message]:
    """Yields every message with the steps of this stage done; one that owns none passes them on."""
    rollout: Rollout | None = None
    awaits_reference = plan.replace_reference and plan.timeline.num_blocks > plan.timeline.blocks_per_clip
    for message in messages:
        match message:
            case Opening(conditions) if steps:
                control.note("fills the sink")
                rollout = Rollout(dit, conditions, plan, steps=steps)
            case WorkingBlock(position, latents, voice) if rollout is not None and voice is not None:
                if awaits_reference and _begins_clip_1(position):
                    control.note("waits for the finished block 0")
                    rollout.replace_reference(references.take())
                rollout.begin(position, voice)
                for step in steps:
                    control.note(f"block {position.index}, step {step}")
                    latents = rollout.denoise(latents, step)
                message = WorkingBlock(position, latents, voice)
        if awaits_reference and isinstance(message, WorkingBlock) and message.position.index == 0:
            references.block_0_passed(message.latents)
        yield message
    references.settle()


def decode(messages: Iterator[Message], vae: VideoVAE, control: RunControl) -> Iterator[tuple[BlockPosition, Tensor]]:
    """Yields each block and its frames, float32 [3, frames, H, W] in [-1, 1]."""
    decoder: FrameDecoder | None = None
    for message in messages:
        match message:
            case Opening(conditions):
                control.note("primes the decoder")
                decoder = FrameDecoder(vae, conditions.motion)
            case WorkingBlock(position, latents):
                assert decoder is not None, "a block came before the opening"
                control.note(f"block {position.index}, decoding")
                yield position, decoder.decode(latents, position)


def _begins_clip_1(position: BlockPosition) -> bool:
    return position.clip == 1 and position.in_clip == 0
