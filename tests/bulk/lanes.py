"""Lanes without Ray: a renderer of rows, and sources of frames that wait, fail and take their time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ray_cluster.errors import ClusterError
from serve_app.bulk.lanes.row_renderer import Place, RowRenderer
from serve_app.deployments.gang_source import as_avatar_error
from serve_app.rendering.frames import FrameSource, IsCancelled
from serve_app.schemas.config import AppConfig
from serve_app.storage.base import Folder
from serve_app.task import FrameBlock, RenderTask
from tests.rendering.fakes import DrawnSource

WAIT_S = 30.0


def renderer(
    folder: Folder, tmp_path: Path, source: FrameSource, *, wait_ready: Callable[[IsCancelled], None] = lambda _: None
) -> RowRenderer:
    spool = tmp_path / "spool"
    spool.mkdir(exist_ok=True)
    return RowRenderer(
        source,
        Place(folder, spool),
        lane="group-0",
        num_ranks=4,
        run_id="r1",
        config=AppConfig(),
        wait_ready=wait_ready,
    )


@dataclass
class GatedSource(DrawnSource):
    """Waits before one block until it may go on."""

    waits_at: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    goes_on: threading.Event = field(default_factory=threading.Event)

    def frames(self, task: RenderTask, *, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        for block in super().frames(task, is_cancelled=is_cancelled):
            if block.index == self.waits_at:
                self.reached.set()
                assert self.goes_on.wait(WAIT_S)
            yield block


@dataclass
class Failing(DrawnSource):
    """Raises before its second block."""

    error: Exception = field(default_factory=ZeroDivisionError)

    def frames(self, task: RenderTask, *, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        for block in super().frames(task, is_cancelled=is_cancelled):
            if block.index == 1:
                raise_as_the_gang_does(self.error)
            yield block


def raise_as_the_gang_does(error: Exception) -> None:
    if isinstance(error, ClusterError):
        raise as_avatar_error(error) from error
    raise error


class Clock:
    """The time of the renderer, which moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.strftime, self.time = time.strftime, time.time

    def monotonic(self) -> float:
        return self.now


@dataclass
class SlowSource(DrawnSource):
    """Takes ten seconds for every block."""

    clock: Clock = field(default_factory=Clock)

    def frames(self, task: RenderTask, *, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        for block in super().frames(task, is_cancelled=is_cancelled):
            self.clock.now += 10
            yield block
