"""What the API asks of a Dispatcher that restarts, hangs or has a bug; and of the store, for everybody at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError

from serve_app.deployments import event_watch
from serve_app.deployments.event_watch import EventWatch
from serve_app.deployments.remote_service import RemoteService
from serve_app.errors import UnavailableError
from serve_app.jobs.errors import JobNotFoundError, StoreError
from serve_app.jobs.idempotency import IdempotencyKey
from tests.jobs.leaders import wanted


@dataclass(frozen=True)
class Raised:
    """An outcome that is no answer."""

    error: Exception


@dataclass(frozen=True)
class Call:
    """A method of a handle."""

    remote: Callable[..., Awaitable[Any]]


@dataclass
class FakeDispatcher:
    """A handle whose calls end as listed, one after the other; a number is a wait of so many seconds."""

    outcomes: list[Any]
    asked: list[str] = field(default_factory=list)

    def __getattr__(self, method: str) -> Call:
        async def called(*_: object) -> Any:
            self.asked.append(method)
            match outcome := self.outcomes.pop(0):
                case Raised(error):
                    raise error
                case float():
                    await asyncio.sleep(outcome)
            return outcome

        return Call(called)


GONE = Raised(ActorUnavailableError("the replica is gone", None))
RESTARTING = UnavailableError("the Dispatcher has just restarted", remedy="try again")


def service_of(dispatcher: FakeDispatcher, *, call_s: float = 5.0) -> RemoteService:
    handle: Any = dispatcher
    return RemoteService(handle, Path("nowhere"), call_s=call_s)


@pytest.mark.parametrize("outcome", [GONE, RESTARTING])
def test_a_dispatcher_that_restarts_is_waited_for(outcome: object) -> None:
    dispatcher = FakeDispatcher([outcome, outcome, {"pools": []}])
    assert asyncio.run(service_of(dispatcher).capacity()) == {"pools": []}
    assert len(dispatcher.asked) == 3


@pytest.mark.parametrize("outcome", [GONE, RESTARTING])
def test_a_submission_without_a_key_is_sent_once_and_one_with_a_key_until_it_is_answered(outcome: object) -> None:
    dispatcher = FakeDispatcher([outcome, "the job"])
    with pytest.raises(UnavailableError):
        asyncio.run(service_of(dispatcher).submit(wanted()))
    assert dispatcher.asked == ["submit"]
    again = FakeDispatcher([outcome, "the job"])
    assert asyncio.run(service_of(again).submit(wanted(key=IdempotencyKey("k", "d")))) == "the job"  # type: ignore[comparison-overlap]


def test_a_dispatcher_that_hangs_is_unavailable_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="does not answer"):
        asyncio.run(service_of(FakeDispatcher([100.0]), call_s=0.3).capacity())
    assert time.monotonic() - started < 2.0


def test_a_bug_of_the_dispatcher_is_told_at_once_and_as_what_it_is() -> None:
    bug = RayTaskError("plan", "the traceback", ZeroDivisionError("a bug")).as_instanceof_cause()
    dispatcher = FakeDispatcher([Raised(bug)])
    with pytest.raises(ZeroDivisionError):
        asyncio.run(service_of(dispatcher).plan(wanted()))
    assert dispatcher.asked == ["plan"]


def test_an_error_that_is_the_answer_is_raised() -> None:
    dispatcher = FakeDispatcher([JobNotFoundError.of("video_0")])
    with pytest.raises(JobNotFoundError):
        asyncio.run(service_of(dispatcher).cancel("video_0"))


@dataclass
class Events:
    """Newest event numbers by job, and every look at them."""

    newest: dict[str, int]
    is_marked: bool = True
    looks: list[Collection[str]] = field(default_factory=list)
    is_broken: bool = False

    def __call__(self, job_ids: Collection[str]) -> Mapping[str, int]:
        self.looks.append(job_ids)
        if self.is_broken:
            raise StoreError("locked", remedy="wait")
        return {job_id: self.newest[job_id] for job_id in job_ids if job_id in self.newest}

    def mark(self) -> object:
        return dict(self.newest) if self.is_marked else None


@pytest.fixture
def _seldom_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_watch, "_ASK_EVERY_S", 1e9)


def test_all_who_wait_share_one_look_and_each_hears_of_its_own_job() -> None:
    events = Events({f"job{number}": 1 for number in range(500)})

    async def story() -> None:
        watch = EventWatch(events, events.mark)
        waiting = {job: asyncio.create_task(watch.wait(job, after=1, timeout_s=10)) for job in events.newest}
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in waiting.values())
        assert {len(look) for look in events.looks} == {500}
        events.newest["job3"] = 2
        del events.newest["job4"]
        assert await waiting.pop("job3")
        assert await waiting.pop("job4")
        assert not any(task.done() for task in waiting.values())
        events.newest = {}
        assert all(await asyncio.gather(*waiting.values()))
        await asyncio.sleep(0.1)
        looked = len(events.looks)
        await asyncio.sleep(0.1)
        assert len(events.looks) == looked, "nobody waits, so nobody looks"
        assert watch._watched == {}

    asyncio.run(story())


@pytest.mark.usefixtures("_seldom_asked")
def test_the_store_is_asked_when_it_changes_and_for_who_comes_new() -> None:
    events = Events({"job1": 1, "job2": 1})

    async def story() -> None:
        watch = EventWatch(events, events.mark)
        first = asyncio.create_task(watch.wait("job1", after=1, timeout_s=10))
        await asyncio.sleep(0.1)
        assert len(events.looks) == 1
        assert await watch.wait("job2", after=0, timeout_s=10), "it is there already"
        events.newest["job1"] = 2
        assert await first
        assert len(events.looks) <= 4

    asyncio.run(story())


def test_a_change_that_leaves_no_mark_is_seen_all_the_same() -> None:
    events = Events({"job": 1}, is_marked=False)

    async def story() -> None:
        watch = EventWatch(events, events.mark)
        waiting = asyncio.create_task(watch.wait("job", after=1, timeout_s=10))
        await asyncio.sleep(0.05)
        events.newest["job"] = 2
        assert await waiting

    asyncio.run(story())


def test_a_store_that_fails_for_a_moment_tells_nobody_of_an_event() -> None:
    events = Events({"job": 1}, is_broken=True)

    async def story() -> None:
        watch = EventWatch(events, events.mark)
        waiting = asyncio.create_task(watch.wait("job", after=0, timeout_s=10))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        events.is_broken = False
        assert await waiting
        assert not await watch.wait("job", after=1, timeout_s=0.1)

    asyncio.run(story())
