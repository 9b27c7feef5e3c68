"""Leader: renders what the Dispatcher orders on one replica group, and tells it all that happens.

Knows neither Serve nor Ray: `ask` carries a report to the Dispatcher and brings its answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ray_cluster.errors import FailureKind, GroupUnavailableError, RankFailedError
from ray_cluster.program import StartReport
from ray_cluster.replica_group import GroupState
from serve_app.errors import AvatarError, GangFailedError, RenderCancelledError, UnavailableError
from serve_app.jobs.job import Document, JobError
from serve_app.jobs.messages import Answer, End, Ending, GroupCondition, GroupReport, Order, Run
from serve_app.metrics import Metric, Metrics
from serve_app.rendering.frames import FrameSource
from serve_app.rendering.pipeline import Progress, RenderResult, render
from serve_app.schemas.config import AppConfig
from serve_app.schemas.render import RenderSpec
from serve_app.schemas.service import ServiceTimes
from serve_app.storage.videos import VideoFiles
from serve_app.task import CARD_BYTES

log = logging.getLogger(__name__)

_LEAST_BETWEEN_S = 0.1
"""Blocks of a small model come faster than anybody needs to hear of them."""
_MAX_REPORTS = 4
"""On their way at once: a new one ends the wait of the last, but a Dispatcher that hangs answers none of them."""

CONDITIONS = {
    GroupState.STARTING: GroupCondition.STARTING,
    GroupState.READY: GroupCondition.READY,
    GroupState.BUSY: GroupCondition.BUSY,
    GroupState.DRAINING: GroupCondition.DRAINING,
    GroupState.STOPPED: GroupCondition.FAILED,
    GroupState.FAILED: GroupCondition.FAILED,
}
"""What a group's own state means to whoever gives it work."""

Ask = Callable[[GroupReport], Awaitable[Answer]]


class Ranks(Protocol):
    """What a leader asks of the ranks that its group has now."""

    @property
    def reports(self) -> tuple[StartReport, ...]: ...


class Group(Protocol):
    """What a leader asks of its replica group; `ReplicaGroup` is one."""

    name: str

    @property
    def state(self) -> GroupState: ...
    @property
    def num_restarts(self) -> int: ...
    @property
    def last_reason(self) -> str: ...
    @property
    def gang(self) -> Ranks | None: ...


class Inputs(Protocol):
    """Where uploaded files are; `storage.files.FileStore` knows."""

    def path_of(self, file_id: str) -> Path: ...


@dataclass(frozen=True)
class Workshop:
    """What every attempt uses."""

    source: FrameSource
    files: Inputs
    videos: VideoFiles
    config: AppConfig
    metrics: Metrics
    pool: str


@dataclass
class _Attempt:
    """The attempt in work, shared with the thread that renders it."""

    order: Order
    started_at: float = field(default_factory=time.perf_counter)
    is_stopped: threading.Event = field(default_factory=threading.Event)
    blocks_done: int = 0
    num_blocks: int = 0
    last_block_at: float = 0.0
    first_block_s: float = 0.0
    block_seconds: float = 0.0

    def is_that_of(self, run: Run | None) -> bool:
        """Says whether a report spoke of this attempt."""
        return run is not None and (run.job_id, run.attempt) == (self.order.job_id, self.order.attempt)

    def run(self) -> Run:
        return Run(self.order.job_id, self.order.attempt, self.blocks_done, self.num_blocks, self.block_seconds)


class Leader:
    """One attempt at a time; an end is told until the Dispatcher has taken it."""

    def __init__(self, group: Group, ask: Ask, workshop: Workshop, *, times: ServiceTimes) -> None:
        self._group, self._ask, self._workshop, self._times = group, ask, workshop, times
        self._attempt: _Attempt | None = None
        self._end: End | None = None
        self._last: tuple[str, int] | None = None
        self._facts: Document = {}
        self._is_draining = False
        self._is_gone = False
        self._changed = asyncio.Event()
        self._urgent = asyncio.Event()
        """What somebody waits for has happened: a first block, an end."""
        self._settled = asyncio.Event()
        self._settled.set()
        self._rests = asyncio.Event()
        self._rests.set()
        self._working: asyncio.Task[None] | None = None
        self._reports: dict[asyncio.Task[None], None] = {}
        self._loop = asyncio.get_running_loop()
        self.num_waiting = 0

    @property
    def is_busy(self) -> bool:
        """Whether an attempt runs, or has ended and the Dispatcher does not know."""
        return not self._settled.is_set()

    async def report_for_ever(self) -> None:
        """Reports at least every `report_every_s`, and soon after whatever happens."""
        while True:
            self._changed.clear()
            self._urgent.clear()
            next_at = self._loop.time() + _LEAST_BETWEEN_S
            report, change = self._begin_report(), asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({report, change}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                change.cancel()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), next_at - self._loop.time())

    async def drain(self, *, timeout_s: float) -> None:
        """Finishes the attempt that runs and takes no other; then its end is known, or the time is over.

        A Dispatcher that does not come back is waited for no longer than `call_s`: the next one finds the video.
        """
        self._is_draining = True
        self._changed.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._rests.wait()
                await asyncio.wait_for(self._settled.wait(), self._times.call_s)

    async def leave(self) -> None:
        """Tells that the group is no more, so that nobody has to find out; a Dispatcher that is not there will."""
        self._is_gone = True
        with suppress(Exception):
            await asyncio.wait_for(self._ask(self._report()), self._times.report_every_s)

    def tell(self) -> None:
        """Lets the next report come soon; from any thread."""
        self._loop.call_soon_threadsafe(self._changed.set)

    def _begin_report(self) -> asyncio.Task[None]:
        """Sends a report, and gives the oldest up when too many are on their way: what they told is in this one."""
        if len(self._reports) >= _MAX_REPORTS:
            next(iter(self._reports)).cancel()
        task = asyncio.create_task(self._report_once())
        self._reports[task] = None
        task.add_done_callback(self._reports.pop)
        return task

    async def _report_once(self) -> None:
        told = self._report()
        try:
            answer = await asyncio.wait_for(self._ask(told), self._times.call_s)
        except Exception as error:  # whatever it is, the Dispatcher comes back, and hears all of it then
            log.warning("dispatcher not reached", extra={"group": self._group.name, "error": str(error)})
            await asyncio.sleep(self._times.report_every_s)
            return
        self._obey(told, answer)

    def _report(self) -> GroupReport:
        return GroupReport(
            group=self._group.name,
            pool=self._workshop.pool,
            condition=self._condition(),
            run=None if self._attempt is None else self._attempt.run(),
            end=self._end,
            num_restarts=self._group.num_restarts,
            reason=self._group.last_reason,
            facts=self._known_facts(),
        )

    def _known_facts(self) -> Document:
        """Returns what the ranks told when they started; while others start in their place, what those told."""
        gang = self._group.gang
        if gang is not None:
            self._facts = _facts_of(gang.reports)
        return self._facts

    def _condition(self) -> GroupCondition:
        if self._is_gone:
            return GroupCondition.GONE
        return GroupCondition.DRAINING if self._is_draining else CONDITIONS[self._group.state]

    def _obey(self, told: GroupReport, answer: Answer) -> None:
        self.num_waiting = answer.num_waiting
        if answer.is_end_taken is not None and told.end is not None and told.end is self._end:
            self._settle(told.end, is_taken=answer.is_end_taken)
        if answer.stops and self._attempt is not None and self._attempt.is_that_of(told.run):
            self._attempt.is_stopped.set()
        if answer.order is not None and self._may_begin(answer.order):
            self._attempt = _Attempt(answer.order)
            self._settled.clear()
            self._rests.clear()
            self._working = asyncio.create_task(self._work(self._attempt))
            self._changed.set()

    def _may_begin(self, order: Order) -> bool:
        """Answers come twice, and late: an order that is obeyed, or was, is no news."""
        is_free = self._attempt is None and self._end is None and not self._is_draining
        return is_free and (order.job_id, order.attempt) != self._last

    def _settle(self, end: End, *, is_taken: bool) -> None:
        self._end = None
        if not is_taken:
            self._workshop.videos.withdraw(end.job_id, attempt=end.attempt)
        self._settled.set()
        self._changed.set()

    async def _work(self, attempt: _Attempt) -> None:
        end = await asyncio.to_thread(self._rendered, attempt)
        self._last = (end.job_id, end.attempt)
        self._end, self._attempt = end, None
        self._rests.set()
        self._changed.set()
        self._urgent.set()

    def _rendered(self, attempt: _Attempt) -> End:
        """Renders on a thread of its own; every way in which that can end is an End."""
        order, shop = attempt.order, self._workshop
        try:
            result = render(
                _resolved(order, shop.files),
                source=shop.source,
                sink=shop.videos.sink(order.job_id, attempt=order.attempt),
                config=shop.config,
                on_progress=lambda progress: self._note(attempt, progress),
                is_cancelled=attempt.is_stopped.is_set,
            )
        except Exception as error:
            return self._ended_by(order, error)
        return self._completed(attempt, result)

    def _note(self, attempt: _Attempt, progress: Progress) -> None:
        """Takes a block border into account; the first call tells how many there will be."""
        now = time.perf_counter()
        if progress.frames_done == 0:
            attempt.num_blocks = progress.num_blocks
        else:
            attempt.blocks_done += 1
            attempt.block_seconds = 0.0 if attempt.blocks_done == 1 else now - attempt.last_block_at
        if attempt.blocks_done == 1:
            attempt.first_block_s = now - attempt.started_at
            self._workshop.metrics.observe(Metric.FIRST_FRAME_SECONDS, attempt.first_block_s, pool=self._workshop.pool)
            self._loop.call_soon_threadsafe(self._urgent.set)
        attempt.last_block_at = now
        self.tell()

    def _completed(self, attempt: _Attempt, result: RenderResult) -> End:
        order = attempt.order
        frames_per_second = result.num_frames / result.render_seconds
        self._workshop.metrics.observe(Metric.FRAMES_PER_SECOND, frames_per_second, pool=self._workshop.pool)
        facts = {
            "inference_time_s": result.render_seconds,
            "first_block_s": attempt.first_block_s,
            "num_frames": result.num_frames,
            "seconds": result.seconds,
        }
        if result.peak_bytes is not None:
            facts["peak_memory_mb"] = round(result.peak_bytes / 2**20, 1)
        return End(order.job_id, order.attempt, Ending.COMPLETED, location=result.location, result=facts)

    def _ended_by(self, order: Order, error: Exception) -> End:
        log.warning("attempt ended", extra={"job": order.job_id, "attempt": order.attempt, "error": str(error)})
        if isinstance(error, RenderCancelledError):
            return End(order.job_id, order.attempt, Ending.CANCELLED)
        if isinstance(error, GangFailedError | UnavailableError):
            cause = error.__cause__
            is_to_blame = not isinstance(cause, GroupUnavailableError)
            return End(order.job_id, order.attempt, Ending.LOST, error=_told(error, cause), is_to_blame=is_to_blame)
        if not isinstance(error, AvatarError):
            log.error("render failed", exc_info=error, extra={"job": order.job_id})
        return End(order.job_id, order.attempt, Ending.FAILED, error=_told(error, None))


def _facts_of(reports: Sequence[StartReport]) -> Document:
    """Returns the memory of the smallest card; nothing where ranks have none."""
    told = [report.facts[CARD_BYTES] for report in reports if CARD_BYTES in report.facts]
    return {CARD_BYTES: min(map(int, told))} if told else {}


def _resolved(order: Order, files: Inputs) -> RenderSpec:
    """Returns the spec with the paths of its inputs in place of their ids."""
    inputs = {name: str(files.path_of(order.spec[name])) for name in ("image", "audio")}
    return RenderSpec.from_request(**{**order.spec, **inputs})


def _told(error: Exception, cause: BaseException | None) -> JobError:
    if isinstance(cause, RankFailedError) and cause.kind is FailureKind.OUT_OF_MEMORY:
        return JobError("over_budget", str(error))
    if isinstance(error, AvatarError):
        return JobError(error.code, str(error))
    return JobError("internal_error", "the render failed for a reason that the log of its group tells")
