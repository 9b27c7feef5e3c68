"""Where frames come from: the FrameSource seam and its in-process implementation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ray_cluster.program import RankProgram, Seat, Unattended
from serve_app.errors import RenderCancelledError
from serve_app.planning.geometry import STARTUP_FRAMES, Timeline
from serve_app.rendering.import_path import import_object
from serve_app.task import FrameBlock, RenderTask

IsCancelled = Callable[[], bool]

PROGRAM = "serve_app.engine.rank_program:AvatarProgram"
"""Loaded by import path, so that torch enters only the process that computes."""


def rank_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Returns what a process that computes finds in its environment before torch is loaded; what is given wins.

    The first lets waiting compute threads sleep soon: by default they spin, and starve each other on a busy machine
    (beside two busy processes on 2 cores a block of the tiny model takes half the time; alone it takes the same). The
    second keeps GPU memory in one piece: budgets hold for it alone, by default gigabytes may be lost between blocks of
    other sizes. It has an older name, and torch's parts disagree which of the two comes first: so both say the same.
    """
    allocator = given.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    defaults = {"GOMP_SPINCOUNT": "20000", "PYTORCH_ALLOC_CONF": allocator}
    return {name: given.get(name, value) for name, value in defaults.items()}


class FrameSource(Protocol):
    """Makes the frames of a task, block by block."""

    def frames(self, task: RenderTask, *, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        """Yields every block in order; raises RenderCancelledError at the first border after a cancel."""
        ...


class InProcessSource:
    """Computes in this process; the networks are loaded for the first task and kept for the next."""

    def __init__(self, *, checkpoint: str, cache_dir: Path) -> None:
        """`checkpoint`: a folder in the published layout, or "tiny" for the built-in model kept in `cache_dir`."""
        self._checkpoint = checkpoint
        self._cache_dir = cache_dir
        self._program: RankProgram | None = None

    def frames(self, task: RenderTask, *, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        """See FrameSource; the first call may raise CheckpointError."""
        if self._program is None:
            os.environ.update(rank_environment(os.environ))
            self._program = _started(checkpoint=self._checkpoint, cache_dir=self._cache_dir)
        return whole_or_cancelled(self._program.run(task, Unattended(is_cancelled)), task, is_cancelled=is_cancelled)


def _started(**options: object) -> RankProgram:
    program: RankProgram = import_object(PROGRAM)(**options)
    program.start(Seat(rank=0, num_ranks=1, rendezvous=""))
    return program


def whole_or_cancelled(
    blocks: Iterator[FrameBlock], task: RenderTask, *, is_cancelled: IsCancelled
) -> Iterator[FrameBlock]:
    """Yields the blocks; raises RenderCancelledError when they end early because they should."""
    count = 0
    for block in blocks:
        count += 1
        yield block
    if count < task.timeline.num_blocks and is_cancelled():
        raise RenderCancelledError("the render was cancelled", remedy="start it again to get the whole video")


def in_file_time(block: FrameBlock, timeline: Timeline) -> NDArray[np.uint8]:
    """Returns the frames that the file shows during a block, uint8 [T, H, W, 3], T <= 12.

    Sound starts with the first frame, but the decoder's start-up swallows three: the first one made stands in
    for them, so that lips and voice agree. The last block ends with the video.
    """
    frames = block.frames
    if block.index == 0:
        frames = np.concatenate((np.repeat(frames[:1], STARTUP_FRAMES, axis=0), frames))
    return frames[: len(timeline.block_frames(block.index))]
