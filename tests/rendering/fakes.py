"""A FrameSource and a VideoSink that need neither a model nor a disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from serve_app.errors import RenderCancelledError
from serve_app.planning.geometry import FRAMES_PER_BLOCK, STARTUP_FRAMES
from serve_app.rendering.frames import IsCancelled
from serve_app.task import FrameBlock, RenderTask

DARK, BRIGHT = 20, 240


@dataclass
class DrawnSource:
    """Dark frames, bright where the file shall flash; breaks down or just ends when it comes to a block."""

    flashes: frozenset[int] = frozenset()
    broken_at: int | None = None
    ends_at: int | None = None
    tasks: list[RenderTask] = field(default_factory=list)

    def frames(self, task: RenderTask, *, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        self.tasks.append(task)
        for index in range(task.timeline.num_blocks):
            if is_cancelled():
                raise RenderCancelledError("cancelled", remedy="start it again")
            if index == self.broken_at:
                raise RuntimeError("the machine is gone")
            if index == self.ends_at:
                return
            start = index * FRAMES_PER_BLOCK
            shown = range(start + STARTUP_FRAMES if index == 0 else start, start + FRAMES_PER_BLOCK)
            levels = np.array([BRIGHT if frame in self.flashes else DARK for frame in shown], dtype=np.uint8)
            shape = (len(shown), task.size.height, task.size.width, 3)
            yield FrameBlock(index, np.broadcast_to(levels[:, None, None, None], shape), seconds=0.0)


@dataclass
class ListSink:
    """Keeps the fragments, and whether they were committed."""

    fragments: list[bytes] = field(default_factory=list)
    is_committed: bool = False

    def append(self, fragment: bytes) -> None:
        self.fragments.append(fragment)

    def commit(self) -> str:
        self.is_committed = True
        return "a list"

    @property
    def video(self) -> bytes:
        return b"".join(self.fragments)
