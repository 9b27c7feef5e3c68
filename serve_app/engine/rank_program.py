"""AvatarProgram: what a rank runs. It loads the networks once and renders one task after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from serve_app.engine.conditioning import Conditioner, load_conditioner
from serve_app.engine.decoding import FrameDecoder, to_pixels
from serve_app.engine.rollout import Rollout, RolloutPlan, drawn_distance
from serve_app.engine.sampler import sample
from serve_app.errors import RenderCancelledError
from serve_app.model.checkpoint import Checkpoint, default_placement
from serve_app.model.dit import CausalDiT
from serve_app.model.flow_match import euler_schedule
from serve_app.model.tiny import TINY, tiny_checkpoint
from serve_app.model.vae import VideoVAE
from serve_app.task import FrameBlock, RenderTask


class AvatarProgram:
    """The networks of one rank. They keep nothing of a video: tasks may follow one another or interleave."""

    def __init__(self, *, checkpoint: str, cache_dir: Path) -> None:
        """Loads a checkpoint folder, or the built-in model when `checkpoint` is "tiny".

        On a GPU weights are bfloat16, on the CPU float32. Raises CheckpointError.
        """
        torch.backends.cudnn.deterministic = True  # same seed, same bytes
        folder = Checkpoint(tiny_checkpoint(cache_dir) if checkpoint == TINY.name else Path(checkpoint))
        placement = default_placement()
        self._dit: CausalDiT = folder.dit().load(placement)
        self._vae: VideoVAE = folder.vae().load(placement).tuned()
        self._conditioner: Conditioner = load_conditioner(
            folder, self._vae, placement, text_len=self._dit.config.text_len
        )

    def run(self, task: RenderTask, *, is_cancelled: Callable[[], bool]) -> Iterator[FrameBlock]:
        """Yields the frames of the video block by block, each as soon as it is made.

        Before every block it asks `is_cancelled`; a yes raises RenderCancelledError.
        """
        blocks = self._frame_blocks(task)
        while True:
            if is_cancelled():
                raise RenderCancelledError("the render was cancelled", remedy="start it again to get the whole video")
            # Entered anew for each block: inference mode must not leak into whoever consumes the frames.
            with torch.inference_mode():
                block = next(blocks, None)
            if block is None:
                return
            yield block

    def _frame_blocks(self, task: RenderTask) -> Iterator[FrameBlock]:
        started = time.perf_counter()
        conditions = self._conditioner(task)
        plan = _plan(task)
        rollout = Rollout(self._dit, conditions, plan, steps=plan.schedule.steps)
        decoder = FrameDecoder(self._vae, conditions.motion)
        for block, latents in sample(rollout):
            frames = to_pixels(decoder.decode(latents, block))
            yield FrameBlock(index=block.index, frames=frames, seconds=time.perf_counter() - started)
            started = time.perf_counter()


def _plan(task: RenderTask) -> RolloutPlan:
    return RolloutPlan(
        size=task.size,
        timeline=task.timeline,
        schedule=euler_schedule(task.sample_steps),
        seed=task.seed,
        replace_reference=task.replace_reference,
        distance=drawn_distance(task.seed),
    )
