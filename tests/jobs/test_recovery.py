"""Store and ledger together: a Dispatcher that starts anew goes on where the last one was."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.jobs.job import Job, JobError, JobState, Priority, new_job_id
from serve_app.jobs.ledger import Ledger, LedgerLimits
from serve_app.jobs.quote import Admitted, Demand
from serve_app.jobs.recovery import restore
from serve_app.jobs.store import JobStore
from tests.jobs.jobs import new_job
from tests.jobs.world import EXACT, Clock

NOT_REPORTED = JobError("group_lost", "its group was not heard of after a restart")
WALL = 1_700_000_000.0


class Service:
    """One life of a Dispatcher with two groups: a store, and a ledger on a clock that starts at zero."""

    def __init__(self, path: Path, wall: Clock) -> None:
        self.wall, self.clock = wall, Clock(0.0)
        self.store = JobStore.take_over(path, wall_clock=wall)
        self.ledger = Ledger(self.clock, LedgerLimits(margin=EXACT))
        restore(self.ledger, self.store.unfinished(), wall_now=wall.now)
        for name in ("g0", "g1"):
            self.ledger.add_group(name, layout="single")

    def submit(self, seconds: float, *, deadline_s: float | None, priority: Priority = Priority.STANDARD) -> Job:
        job_id = new_job_id()
        outcome = self.ledger.admit(job_id, Demand({"single": seconds}, priority, deadline_s))
        assert isinstance(outcome, Admitted)
        promise_in_s = outcome.quote.promise_in_s
        promised_at = None if promise_in_s is None else self.wall.now + promise_in_s
        expires_at = None if deadline_s is None else self.wall.now + deadline_s
        accepted = new_job(
            layout="single", predicted_s=seconds, priority=priority, promised_at=promised_at, expires_at=expires_at
        )
        self.store.add(accepted, job_id=job_id)
        self.start_idle()
        return self.store.get(job_id)

    def start_idle(self) -> list[str]:
        started = self.ledger.start_idle()
        return [self.store.start(booking.job_id, group=group).id for group, booking in started.items()]

    def finish(self, job_id: str) -> list[str]:
        self.ledger.release(job_id)
        self.store.complete(job_id, attempt=self.store.get(job_id).attempt, location="v.mp4", result={})
        return self.start_idle()

    def pass_time(self, seconds: float) -> None:
        self.wall.now += seconds
        self.clock.now += seconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


def test_a_new_dispatcher_keeps_promises_order_and_what_still_runs(path: Path) -> None:
    wall = Clock(WALL)
    before = Service(path, wall)
    kept, lost, third, fourth = (before.submit(50.0, deadline_s=due_s).id for due_s in (100.0, 110.0, 300.0, 200.0))
    bulk = before.submit(50.0, deadline_s=None, priority=Priority.BULK).id
    before.pass_time(20.0)

    after = Service(path, wall)
    assert after.ledger.num_waiting == 5
    after.ledger.adopt(kept, group="g0")
    after.ledger.progress(kept, blocks_left=30, block_seconds=1.0)
    assert after.ledger.cancel(lost)
    again = after.store.lose_group(lost, attempt=1, cause=NOT_REPORTED, has_brought_down=False)
    restore(after.ledger, [again], wall_now=wall.now)
    assert after.start_idle() == [lost]
    assert [after.finish(job_id) for job_id in (kept, lost, fourth, third, bulk)] == [[fourth], [third], [bulk], [], []]
    assert after.store.get(lost).attempt == 2


def test_what_expired_while_nobody_served_is_dropped_but_not_what_still_runs(path: Path) -> None:
    wall = Clock(WALL)
    before = Service(path, wall)
    for _ in range(2):
        before.submit(50.0, deadline_s=60.0)
    running, lost = before.store.unfinished()
    waiting, patient = before.submit(50.0, deadline_s=101.0), before.submit(50.0, deadline_s=None)
    before.pass_time(3_600.0)

    after = Service(path, wall)
    assert after.ledger.take_expired() == [waiting.id]
    after.ledger.adopt(running.id, group="g0")
    assert after.ledger.cancel(lost.id)
    assert after.start_idle() == [patient.id]
    dropped = after.store.fail(waiting.id, error=JobError("deadline_passed", "its deadline passed before it started"))
    assert dropped.state is JobState.FAILED


def test_a_wall_clock_that_jumps_moves_no_promise_of_a_dispatcher_that_lives(path: Path) -> None:
    wall = Clock(WALL)
    service = Service(path, wall)
    running = [service.submit(50.0, deadline_s=60.0).id for _ in range(2)]
    waiting = service.submit(50.0, deadline_s=110.0).id
    wall.now += 86_400.0
    assert service.ledger.take_expired() == []
    service.clock.now += 50.0
    assert service.finish(running[0]) == [waiting]
