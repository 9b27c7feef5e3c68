"""RowRenderer: makes the videos of rows with one source of frames, through the same path as everything else.

While one row has the ranks, the next one's inputs are fetched and decoded, and the last one's video is brought to its
place: only `frames` is done in turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from serve_app.bulk.inputs import checked_copy
from serve_app.bulk.lanes.failures import has_brought_down, is_begun, row_error, story_of
from serve_app.bulk.lanes.messages import RowOrder, RowReport
from serve_app.bulk.lanes.result import MadeVideo, Published, result_of
from serve_app.bulk.lanes.row_log import RowLog
from serve_app.bulk.outcomes import Code
from serve_app.bulk.output import RowOutput
from serve_app.bulk.row import Document
from serve_app.errors import AvatarError, RenderCancelledError, StorageError
from serve_app.rendering.frames import FrameSource, IsCancelled
from serve_app.rendering.pipeline import Progress, RenderResult, render
from serve_app.schemas.config import AppConfig
from serve_app.schemas.render import RenderSpec
from serve_app.storage.base import Folder
from serve_app.task import FrameBlock, RenderTask

_LOOK_EVERY_S = 0.2
_PATIENT_S, _ASK_AGAIN_S = 120.0, 5.0
"""How long, and how often, a bucket is asked to take a video; each time the client has tried several times."""

Value = TypeVar("Value")

WaitReady = Callable[[IsCancelled], None]
"""Returns once the ranks can be had; raises AvatarError when they cannot, or the row is cancelled."""


@dataclass(eq=False)
class Turn:
    """One attempt on its way to the ranks and over them; shared with whoever asks how far it is.

    `stage` is as RowError has it; the output folder is asked before the inputs are.
    """

    order: RowOrder
    log: RowLog
    is_stopped: threading.Event
    stage: str = "upload"
    began_at: float | None = None
    busy_s: float = 0.0
    blocks_done: int = 0
    num_blocks: int = 0

    def is_late(self) -> bool:
        return self.began_at is not None and time.monotonic() - self.began_at > self.order.limit_s

    def is_over(self) -> bool:
        """Whether the attempt shall end at the next block border."""
        return self.is_stopped.is_set() or self.is_late()


class InTurn:
    """A FrameSource that several attempts share: one after the other."""

    def __init__(self, source: FrameSource, wait_ready: WaitReady) -> None:
        self._source = source
        self._wait_ready = wait_ready
        self._ranks = threading.Lock()
        self.turn: Turn | None = None
        self.busy_s = 0.0

    def of(self, turn: Turn) -> _Mine:
        """Returns the source as one attempt sees it."""
        return _Mine(self, turn)

    def frames(self, turn: Turn, task: RenderTask, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        while not self._ranks.acquire(timeout=_LOOK_EVERY_S):
            if is_cancelled():
                raise RenderCancelledError("the row was stopped before its turn", remedy="start the job again")
        try:
            self._wait_ready(is_cancelled)
            yield from self._of_ranks(turn, task, is_cancelled)
        finally:
            self._ranks.release()

    def _of_ranks(self, turn: Turn, task: RenderTask, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        began_at = time.monotonic()
        turn.began_at, turn.stage, self.turn = began_at, "render", turn
        turn.log.note("has the ranks")
        try:
            yield from self._source.frames(task, is_cancelled=is_cancelled)
        finally:
            turn.busy_s = time.monotonic() - began_at
            turn.began_at, self.turn = None, None
            self.busy_s += turn.busy_s


@dataclass(frozen=True)
class _Mine:
    shared: InTurn
    mine: Turn

    def frames(self, task: RenderTask, *, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        """See FrameSource."""
        return self.shared.frames(self.mine, task, is_cancelled)


@dataclass(frozen=True)
class Place:
    """Where a lane writes: the output folder, and a folder of this machine for what is on its way to a bucket."""

    output: Folder
    spool: Path


class RowRenderer:
    """Renders orders, several threads at once; see the module."""

    def __init__(
        self,
        source: FrameSource,
        place: Place,
        *,
        lane: str,
        num_ranks: int,
        run_id: str,
        config: AppConfig,
        wait_ready: WaitReady,
    ) -> None:
        """`wait_ready` waits for ranks that are started anew: that is no time of the row whose turn it is."""
        self._ranks = InTurn(source, wait_ready)
        self._place = place
        self._lane = lane
        self._num_ranks = num_ranks
        self._run_id = run_id
        self._config = config
        self._is_stopped = threading.Event()

    @property
    def now(self) -> Turn | None:
        """The attempt that has the ranks."""
        return self._ranks.turn

    @property
    def busy_s(self) -> float:
        """How long the ranks have worked so far, on whatever."""
        turn = self.now
        began_at = None if turn is None else turn.began_at
        return self._ranks.busy_s + (0.0 if began_at is None else time.monotonic() - began_at)

    def stop(self) -> None:
        """Lets every attempt end at its next block border, also those that are still on their way here."""
        self._is_stopped.set()

    def render(self, order: RowOrder) -> RowReport:
        """Makes the video of a row, and commits it; every way in which that can end is a report."""
        turn = Turn(order, RowLog(order, lane=self._lane, run_id=self._run_id), self._is_stopped)
        output = RowOutput(self._place.output, order.custom_id, self._place.spool)
        try:
            report = self._done(turn, output)
        except Exception as error:
            report = self._failed(turn, error)
        return turn.log.kept(output, report)

    def _done(self, turn: Turn, output: RowOutput) -> RowReport:
        """Returns the report of a row that is committed: by this attempt, or by whoever was before it."""
        order = turn.order
        result = output.result()
        if result is None or result["row_key"] != order.row_key:
            output.prepare()
            made = self._rendered(turn, output)
            turn.log.note("is rendered")
            result = self._kept(turn, output, made)
        else:
            output.archive(order.archive_name)
        turn.log.note("is done")
        return RowReport(order.seq, order.attempt, self._lane, result=result, busy_s=turn.busy_s)

    def _rendered(self, turn: Turn, output: RowOutput) -> RenderResult:
        turn.stage = "inputs"
        spec = RenderSpec.from_request(**turn.order.spec)
        with ExitStack() as copies:
            inputs = {
                name: str(copies.enter_context(checked_copy(getattr(spec, name), sha256=sha256, spool=output.spool)))
                for name, sha256 in turn.order.sha256.items()
            }
            turn.log.note("has its inputs")
            return render(
                spec.model_copy(update=inputs),
                source=self._ranks.of(turn),
                sink=output.sink(),
                config=self._config,
                on_progress=lambda progress: _note(turn, progress),
                is_cancelled=turn.is_over,
            )

    def _kept(self, turn: Turn, output: RowOutput, made: RenderResult) -> Document:
        """Brings a video to its place and commits it; returns the result that counts."""
        turn.stage = "upload"
        try:
            sha256, num_bytes = _patiently(turn, output, output.publish)
            _patiently(turn, output, lambda: output.archive(turn.order.archive_name))
            result = self._result(turn, made, Published(output.uri, sha256, num_bytes))
            return _patiently(turn, output, lambda: output.commit(result))
        finally:
            output.discard()

    def _result(self, turn: Turn, made: RenderResult, published: Published) -> Document:
        video = MadeVideo(
            size=str(made.size),
            num_frames=made.num_frames,
            seconds=made.seconds,
            render_s=round(made.render_seconds, 3),
            gpu_s=round(turn.busy_s * self._num_ranks, 3),
        )
        return result_of(turn.order, video, published, lane=self._lane, run_id=self._run_id)

    def _failed(self, turn: Turn, error: Exception) -> RowReport:
        order = turn.order
        told = row_error(error, attempt=order.attempt, lane=self._lane, stage=turn.stage, blocks_done=turn.blocks_done)
        if told.code is Code.CANCELLED and not turn.is_stopped.is_set():
            told = replace(told, code=Code.TIMEOUT, message=f"took longer than {order.limit_s:.0f} s and was stopped")
        turn.log.note(f"failed: {told.code}: {told.message}")
        if not isinstance(error, AvatarError) or has_brought_down(error):
            turn.log.note(story_of(error))
        return RowReport(
            order.seq,
            order.attempt,
            self._lane,
            error=told,
            has_brought_down=has_brought_down(error),
            is_begun=is_begun(error),
            busy_s=turn.busy_s,
        )


def _patiently(turn: Turn, output: RowOutput, act: Callable[[], Value]) -> Value:
    """Asks a bucket that does not take a video again for a while: to make the video once more costs far more."""
    give_up_at = time.monotonic() + (_PATIENT_S if output.is_far else 0.0)
    while True:
        try:
            return act()
        except StorageError as error:
            if time.monotonic() >= give_up_at or turn.is_stopped.wait(_ASK_AGAIN_S):
                raise
            turn.log.note(f"is not taken yet: {error}")


def _note(turn: Turn, progress: Progress) -> None:
    """Takes a block border into account; the first call tells how many there will be."""
    if progress.frames_done == 0:
        turn.num_blocks = progress.num_blocks
        return
    turn.blocks_done += 1
    turn.log.note(f"block {turn.blocks_done} of {turn.num_blocks}")
