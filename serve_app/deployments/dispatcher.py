"""Dispatcher: the deployment around `jobs.dispatching`, with exactly one replica."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from serve_app.deployments.metrics import RayMetrics
from serve_app.errors import AvatarError, UnavailableError
from serve_app.jobs.data_disk import DataDisk
from serve_app.jobs.dispatching import Dispatching
from serve_app.jobs.errors import StaleEpochError, StoreError
from serve_app.jobs.fleet import Fleet
from serve_app.jobs.job import Document, Job
from serve_app.jobs.messages import Answer, GroupCondition, GroupReport
from serve_app.jobs.quote import Outcome, Place, Rejected
from serve_app.jobs.retention import Retention
from serve_app.jobs.store import JobStore
from serve_app.jobs.submission import Submission
from serve_app.planning.calibration import load_calibration
from serve_app.schemas.service import ServiceConfig
from serve_app.storage.files import FileStore
from serve_app.storage.videos import VideoFiles

log = logging.getLogger(__name__)

_TICK_S = 1.0
_SWEEP_EVERY_S = 600.0
STORE_NAME = "jobs.sqlite3"

Value = TypeVar("Value")


class Dispatcher:
    """Every method answers a value, or the AvatarError that the caller is to raise.

    One thread does all the work, so that nothing needs a lock and the event loop only waits; files are swept on
    another, for that takes long. When the job store fails, another Dispatcher has taken it over, or time cannot pass
    any more, this one says so in its health check and is replaced.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self._loop = asyncio.get_running_loop()
        self._times = config.times
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dispatching")
        self._held: dict[str, asyncio.Event] = {}
        self._fatal: Exception | None = None
        store = JobStore.take_over(config.data_dir / STORE_NAME, wall_clock=time.time)
        self._dispatching = self._made(config, store)
        self._retention = Retention(
            store,
            VideoFiles(config.data_dir),
            FileStore(config.data_dir),
            keep_s=config.times.keep_s,
            wall_clock=time.time,
        )
        self._ticking = self._loop.create_task(self._tick_for_ever())
        self._sweeping = self._loop.create_task(self._sweep_for_ever())

    async def plan(self, wanted: Submission) -> Outcome | AvatarError:
        """See Dispatching.plan."""
        return await self._done(partial(self._dispatching.plan, wanted))

    async def submit(self, wanted: Submission) -> Job | Rejected | AvatarError:
        """See Dispatching.submit."""
        return await self._done(partial(self._dispatching.submit, wanted))

    async def cancel(self, job_id: str) -> Job | AvatarError:
        """See Dispatching.cancel."""
        return await self._done(partial(self._dispatching.cancel, job_id))

    async def delete(self, job_id: str) -> Job | AvatarError:
        """See Dispatching.delete."""
        return await self._done(partial(self._dispatching.delete, job_id))

    async def place(self, job_id: str) -> Place | AvatarError | None:
        """See Dispatching.place."""
        return await self._done(partial(self._dispatching.place, job_id))

    async def capacity(self) -> Document | AvatarError:
        """See Dispatching.capacity."""
        return await self._done(self._dispatching.capacity)

    async def report(self, told: GroupReport) -> Answer | AvatarError:
        """Answers a leader: at once when there is something to do, else when there is, or when the next report is due.

        A new report of the same group ends the wait of an older one.
        """
        self._wake(told.group)
        # From here on, for what happens between the answer and its wait is news too.
        news = self._held[told.group] = asyncio.Event()
        try:
            answer = await self._done(partial(self._dispatching.report, told))
            if isinstance(answer, AvatarError) or not _may_wait(told, answer):
                return answer
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), self._times.report_every_s)
        finally:
            if self._held.get(told.group) is news:
                del self._held[told.group]
        return await self._done(partial(self._dispatching.answer_again, told.group))

    async def check_health(self) -> None:
        """Raises what makes this Dispatcher useless, so that Serve starts another one."""
        if self._fatal is not None:
            raise self._fatal

    async def __del__(self) -> None:
        """Takes nothing more; what was accepted is in the store, for the next one."""
        self._ticking.cancel()
        self._sweeping.cancel()
        await self._done(self._dispatching.close)
        self._fatal = self._fatal or _replaced()
        self._thread.shutdown()

    def _made(self, config: ServiceConfig, store: JobStore) -> Dispatching:
        fleet = Fleet(config.pools, calibration=load_calibration(), cpu_bytes=_memory_bytes())
        return Dispatching(
            store,
            fleet,
            DataDisk(config.data_dir, fleet.disk_bytes),
            VideoFiles(config.data_dir),
            limits=config.queue,
            times=config.times,
            clock=time.monotonic,
            wall_clock=time.time,
            metrics=RayMetrics(),
            on_order=self._wake_from_thread,
        )

    async def _done(self, work: Callable[[], Value]) -> Value | AvatarError:
        if self._fatal is not None:
            return _replaced()
        try:
            return await self._loop.run_in_executor(self._thread, work)
        except (StoreError, StaleEpochError) as error:
            self._give_up(error)
            return _replaced()
        except AvatarError as error:
            return error

    def _give_up(self, error: Exception) -> None:
        """Does nothing from now on: nothing is known for certain any more. The next Dispatcher builds on the store."""
        log.error("dispatcher gives up", exc_info=error)
        self._fatal = self._fatal or error

    def _wake_from_thread(self, group: str) -> None:
        self._loop.call_soon_threadsafe(self._wake, group)

    def _wake(self, group: str) -> None:
        event = self._held.pop(group, None)
        if event is not None:
            event.set()

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                error: Exception | None = await self._done(self._dispatching.tick)
            except Exception as unforeseen:
                error = unforeseen
            if error is not None and self._fatal is None:
                self._give_up(error)

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._retention.sweep)
            except Exception:  # what stays now, the next sweep removes
                log.exception("sweep failed")
            await asyncio.sleep(_SWEEP_EVERY_S)


def _may_wait(told: GroupReport, answer: Answer) -> bool:
    has_news = answer.order is not None or answer.stops or answer.is_end_taken is not None
    return not has_news and told.condition is not GroupCondition.GONE


def _replaced() -> UnavailableError:
    return UnavailableError("the Dispatcher is being replaced", remedy="try again in some seconds")


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
