"""The Dispatcher on a loop of its own, without Serve: who waits for what, and what happens when something breaks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import serve_app.deployments.dispatcher as module
from serve_app.deployments.dispatcher import STORE_NAME, Dispatcher
from serve_app.errors import UnavailableError
from serve_app.jobs.errors import JobNotFoundError, StaleEpochError
from serve_app.jobs.job import Job, JobState
from serve_app.jobs.messages import Answer, GroupCondition, GroupReport
from serve_app.jobs.store import JobStore
from serve_app.schemas.service import PoolConfig, ServiceConfig, ServiceTimes
from tests.jobs.leaders import POOL, wanted

TIMES = ServiceTimes(report_every_s=2.0)
READY = GroupReport("g0", POOL.name, GroupCondition.READY)
GONE = GroupReport("g0", POOL.name, GroupCondition.GONE)

Story = Callable[[Dispatcher], Awaitable[None]]


class Unmanaged(Dispatcher):
    """Serve awaits a replica's destructor; Python calls this one."""

    def __del__(self) -> None:  # type: ignore[override]
        """Nothing is left to do."""


@pytest.fixture(autouse=True)
def _quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TICK_S", 0.02)


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Story], None]:
    """Plays a story with a Dispatcher that ends with it."""
    pools = (PoolConfig(name=POOL.name, model=POOL.model, cpu_memory_gib=8),)
    config = ServiceConfig(data_dir=tmp_path, pools=pools, times=TIMES, allow_anonymous=True)

    async def run(story: Story) -> None:
        dispatcher = Unmanaged(config)
        try:
            await story(dispatcher)
        finally:
            await Dispatcher.__del__(dispatcher)

    return lambda story: asyncio.run(run(story))


async def until_unhealthy(dispatcher: Dispatcher) -> Exception:
    async with asyncio.timeout(5):
        while True:
            try:
                await dispatcher.check_health()
            except Exception as error:
                return error
            await asyncio.sleep(0.01)


def test_a_held_leader_hears_of_its_job_at_once(play: Callable[[Story], None]) -> None:
    async def story(dispatcher: Dispatcher) -> None:
        await dispatcher.report(READY)
        held = asyncio.create_task(dispatcher.report(READY))
        await asyncio.sleep(0.2)
        assert not held.done()
        started = time.perf_counter()
        job = await dispatcher.submit(wanted())
        assert isinstance(job, Job)
        answer = await held
        assert time.perf_counter() - started < 1.0
        assert isinstance(answer, Answer)
        assert answer.order is not None
        assert answer.order.job_id == job.id
        assert dispatcher._held == {}

    play(story)


def test_a_new_report_ends_the_wait_of_the_one_before_and_is_itself_held(play: Callable[[Story], None]) -> None:
    async def story(dispatcher: Dispatcher) -> None:
        first = asyncio.create_task(dispatcher.report(READY))
        await asyncio.sleep(0.2)
        second = asyncio.create_task(dispatcher.report(READY))
        async with asyncio.timeout(TIMES.report_every_s / 2):
            await first
        await asyncio.sleep(0.1)
        assert not second.done()
        await dispatcher.submit(wanted())
        async with asyncio.timeout(TIMES.report_every_s / 2):
            answer = await second
        assert isinstance(answer, Answer)
        assert answer.order is not None
        assert dispatcher._held == {}

    play(story)


def test_news_that_come_between_an_answer_and_its_wait_are_not_lost(play: Callable[[Story], None]) -> None:
    async def story(dispatcher: Dispatcher) -> None:
        report = dispatcher._dispatching.report

        def report_and_hear(told: GroupReport) -> Answer:
            answer = report(told)
            dispatcher._dispatching._on_order(told.group)
            return answer

        dispatcher._dispatching.report = report_and_hear  # type: ignore[method-assign]
        started = time.perf_counter()
        await dispatcher.report(READY)
        assert time.perf_counter() - started < TIMES.report_every_s / 2

    play(story)


def test_a_group_that_leaves_is_answered_at_once(play: Callable[[Story], None]) -> None:
    async def story(dispatcher: Dispatcher) -> None:
        started = time.perf_counter()
        assert isinstance(await dispatcher.report(GONE), Answer)
        assert time.perf_counter() - started < TIMES.report_every_s / 2

    play(story)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), JobNotFoundError.of("video_0")])
def test_a_dispatcher_whose_time_stands_still_says_so(play: Callable[[Story], None], error: Exception) -> None:
    async def story(dispatcher: Dispatcher) -> None:
        def tick() -> None:
            raise error

        await dispatcher.check_health()
        dispatcher._dispatching.tick = tick  # type: ignore[method-assign]
        assert await until_unhealthy(dispatcher) is error
        assert isinstance(await dispatcher.submit(wanted()), UnavailableError)

    play(story)


def test_a_dispatcher_that_was_overtaken_says_so_and_what_it_had_accepted_is_there(
    play: Callable[[Story], None], tmp_path: Path
) -> None:
    async def story(dispatcher: Dispatcher) -> None:
        first = asyncio.create_task(dispatcher.report(READY))
        await asyncio.sleep(0.1)
        job = await dispatcher.submit(wanted())
        assert isinstance(job, Job)
        next_one = JobStore.take_over(tmp_path / STORE_NAME, wall_clock=time.time)
        assert isinstance(await dispatcher.submit(wanted()), UnavailableError)
        assert isinstance(await until_unhealthy(dispatcher), StaleEpochError)
        assert [(one.id, one.state) for one in next_one.unfinished()] == [(job.id, JobState.RUNNING)]
        next_one.close()
        await first

    play(story)


def test_requests_do_not_wait_for_a_sweep_and_a_sweep_that_fails_is_no_harm(
    play: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps, goes_on = threading.Event(), threading.Event()

    def sweep(_: object) -> int:
        sweeps.set()
        goes_on.wait(10)
        raise PermissionError("somebody else's file")

    monkeypatch.setattr(module.Retention, "sweep", sweep)

    async def story(dispatcher: Dispatcher) -> None:
        assert await asyncio.to_thread(sweeps.wait, 5)
        async with asyncio.timeout(2):
            await dispatcher.capacity()
        goes_on.set()
        await asyncio.sleep(0.2)
        await dispatcher.check_health()

    try:
        play(story)
    finally:
        goes_on.set()
