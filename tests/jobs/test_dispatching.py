"""Requests and reports: every accepted job ends once, whoever dies or hears nothing meanwhile."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from serve_app.errors import UnavailableError
from serve_app.jobs.errors import IdempotencyConflictError, IllegalTransitionError
from serve_app.jobs.idempotency import IdempotencyKey
from serve_app.jobs.job import Job, JobState, Priority
from serve_app.jobs.messages import GroupCondition
from serve_app.jobs.quote import Admitted, Reason, Rejected
from serve_app.planning.geometry import Size
from serve_app.planning.workload import Workload
from tests.jobs.leaders import BLOCKS, GIB, POOL, TIMES, FakeLeader, Service, Usage, wanted


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "jobs.sqlite3")


@pytest.fixture
def leader(service: Service) -> FakeLeader:
    """A group that is there and idle."""
    leader = FakeLeader(service, "g0")
    leader.report()
    return leader


def finish(leader: FakeLeader) -> None:
    while leader.order is not None:
        leader.work()
        leader.report()


def test_a_job_goes_to_an_idle_group_and_is_completed_with_what_the_leader_tells(
    service: Service, leader: FakeLeader
) -> None:
    job = service.accept()
    assert (job.state, job.group, job.layout) == (JobState.RUNNING, "g0", POOL.name)
    answer = leader.report()
    assert answer is not None
    assert answer.order is not None
    assert (answer.order.job_id, answer.order.attempt, answer.order.spec) == (job.id, 1, job.spec)
    leader.work()
    leader.report()
    assert (service.job(job.id).blocks_done, service.job(job.id).progress) == (1, 100 // BLOCKS)
    finish(leader)
    done = service.job(job.id)
    assert (done.state, done.location, done.result["inference_time_s"]) == (JobState.COMPLETED, f"{job.id}/1", 2.0)


def test_plan_answers_what_submit_would_and_stores_nothing(service: Service, leader: FakeLeader) -> None:
    planned = service.dispatching.plan(wanted())
    assert isinstance(planned, Admitted)
    assert (service.reader.page().jobs, leader.report().order) == ((), None)  # type: ignore[union-attr]
    assert service.accept().predicted_s == planned.quote.seconds


def test_what_never_fits_is_refused_with_numbers_and_is_not_stored(service: Service, leader: FakeLeader) -> None:
    service.pools = (POOL.model_copy(update={"gpu": "24", "checkpoint": "big"}),)
    service.restart()
    leader.report()
    refused = service.submit(work=Workload(Size(704, 384)))
    assert isinstance(refused, Rejected)
    assert refused.reason is Reason.NEVER_FITS
    assert refused.figures["needed_bytes"] > refused.figures["available_bytes"]  # type: ignore[operator]
    assert service.reader.page().jobs == ()


def test_a_full_disk_refuses_and_counts_what_was_accepted_before(service: Service, leader: FakeLeader) -> None:
    per_job = service.dispatching._fleet.disk_bytes(wanted())
    watermark = 10 * GIB
    service.usage = Usage(free=watermark + 2 * per_job)
    assert leader.order is None
    service.accept()
    service.accept()
    refused = service.submit()
    assert isinstance(refused, Rejected)
    assert refused.reason is Reason.HOST_FULL
    leader.report()
    finish(leader)
    service.accept()


def test_the_same_key_is_the_same_job_and_another_request_with_it_conflicts(
    service: Service, leader: FakeLeader
) -> None:
    assert leader.order is None
    key = IdempotencyKey.of("k", {"a": 1})
    first = service.accept(key=key)
    assert service.accept(key=key).id == first.id
    with pytest.raises(IdempotencyConflictError):
        service.submit(key=IdempotencyKey.of("k", {"a": 2}))
    assert len(service.reader.page().jobs) == 1


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_at_its_border(
    service: Service, leader: FakeLeader
) -> None:
    runs, waits = service.accept(), service.accept()
    leader.report()
    leader.work()
    assert service.dispatching.cancel(waits.id).state is JobState.CANCELLED
    assert service.dispatching.cancel(runs.id).state is JobState.RUNNING
    leader.report()
    finish(leader)
    assert service.job(runs.id).state is JobState.CANCELLED
    assert leader.commits == []
    with pytest.raises(IllegalTransitionError):
        service.dispatching.cancel(runs.id)


def test_a_job_whose_ranks_failed_runs_again_and_fails_when_it_brings_down_a_second_group(
    service: Service, leader: FakeLeader
) -> None:
    job = service.accept()
    leader.report()
    leader.lose_ranks()
    leader.report()
    assert (service.job(job.id).state, service.job(job.id).attempt) == (JobState.QUEUED, 2)
    leader.condition = GroupCondition.READY
    leader.report()
    leader.lose_ranks()
    leader.report()
    failed = service.job(job.id)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("gang_failed", "rank 1 died")


def test_a_group_that_falls_silent_is_lost_and_its_late_video_is_thrown_away(
    service: Service, leader: FakeLeader
) -> None:
    job = service.accept()
    leader.report()
    service.silence(TIMES.lost_after_s + 1)
    other = FakeLeader(service, "g1")
    other.report()
    assert (service.job(job.id).attempt, service.job(job.id).group) == (2, "g1")
    while leader.order is not None:  # it was only cut off, and ends what it had begun
        leader.work()
    leader.report()
    assert not service.shelf.is_committed(job.id, attempt=1)
    other.report()
    finish(other)
    assert service.job(job.id).location == f"{job.id}/2"


def test_a_silent_group_that_had_committed_has_completed(service: Service, leader: FakeLeader) -> None:
    job = service.accept()
    leader.report()
    while leader.order is not None:
        leader.work()
    service.silence(TIMES.lost_after_s + 1)
    assert service.job(job.id).state is JobState.COMPLETED
    leader.report()
    assert (service.job(job.id).location, leader.end) == (f"{job.id}/1", None)
    assert service.shelf.is_committed(job.id, attempt=1)


def test_an_order_whose_answer_was_lost_is_given_again(service: Service, leader: FakeLeader) -> None:
    job = service.accept()
    leader.report(is_answer_lost=True)
    leader.report()
    finish(leader)
    assert (service.job(job.id).state, service.job(job.id).attempt) == (JobState.COMPLETED, 1)


def test_after_a_restart_running_jobs_go_on_and_nothing_is_taken_before_they_were_heard(
    service: Service, leader: FakeLeader
) -> None:
    runs, waits = service.accept(), service.accept()
    leader.report()
    service.restart()
    with pytest.raises(UnavailableError):
        service.submit()
    leader.report()
    service.accept()
    finish(leader)
    assert [service.job(one.id).state for one in (runs, waits)] == [JobState.COMPLETED] * 2
    assert service.job(runs.id).attempt == 1


def test_after_a_restart_a_job_that_no_leader_tells_of_starts_again(service: Service, leader: FakeLeader) -> None:
    job = service.accept()
    leader.report()
    service.restart()
    service.silence(TIMES.grace_s + 1)
    assert (service.job(job.id).state, service.job(job.id).attempt) == (JobState.QUEUED, 2)
    other = FakeLeader(service, "g1")
    other.report()
    finish(other)
    assert service.job(job.id).state is JobState.COMPLETED
    leader.report()
    assert leader.is_stopped


def test_a_cancel_is_not_forgotten_by_a_restart(service: Service, leader: FakeLeader) -> None:
    job = service.accept()
    leader.report()
    service.dispatching.cancel(job.id)
    service.restart()
    leader.report()
    finish(leader)
    assert service.job(job.id).state is JobState.CANCELLED


def test_a_deadline_that_passes_before_the_start_ends_the_job(service: Service, leader: FakeLeader) -> None:
    service.accept()
    late = service.accept(deadline_s=100.0)
    assert leader.order is None
    service.clock.now += 101
    leader.report()
    service.dispatching.tick()
    dropped = service.job(late.id)
    assert (dropped.state, dropped.error.code if dropped.error else "") == (JobState.FAILED, "deadline_passed")


def test_a_draining_group_ends_its_job_and_gets_no_other(service: Service, leader: FakeLeader) -> None:
    runs, waits = service.accept(), service.accept()
    leader.report()
    leader.condition = GroupCondition.DRAINING
    finish(leader)
    assert (service.job(runs.id).state, service.job(waits.id).state) == (JobState.COMPLETED, JobState.QUEUED)


@pytest.mark.parametrize("condition", [GroupCondition.DRAINING, GroupCondition.GONE])
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_an_order_that_a_leaving_group_never_began_costs_no_attempt(
    service: Service, leader: FakeLeader, condition: GroupCondition, is_cancelled: bool
) -> None:
    job = service.accept()
    assert job.state is JobState.RUNNING
    if is_cancelled:
        service.dispatching.cancel(job.id)
    leader.condition = condition
    answer = leader.report()
    assert answer is not None
    assert answer.order is None
    assert service.job(job.id).state is (JobState.CANCELLED if is_cancelled else JobState.QUEUED)
    other = FakeLeader(service, "g1")
    other.report()
    finish(other)
    ended = service.job(job.id)
    assert (ended.state, ended.attempt) == (JobState.CANCELLED if is_cancelled else JobState.COMPLETED, 1)


class Storm:
    """Three leaders and a Dispatcher that die, fall silent and lose answers, by chance."""

    def __init__(self, service: Service, *, seed: int) -> None:
        self.service = service
        self.chance = random.Random(seed)
        self.leaders = [FakeLeader(service, f"g{number}") for number in range(3)]
        self.names = (f"g{number}" for number in range(3, 1000))
        self.accepted: list[str] = []

    def rage(self) -> None:
        blows = [self.submit, self.submit, self.pass_time, self.cancel, self.lose_ranks, self.replace_leader]
        blows += [self.drain]
        if self.chance.random() < 0.25:
            self.chance.choice([*blows, self.service.restart])()
        self.step(is_rough=True)

    def step(self, *, is_rough: bool) -> None:
        one = self.chance.choice(self.leaders)
        if one.condition is GroupCondition.STARTING and self.chance.random() < 0.5:
            one.condition = GroupCondition.READY
        if one.condition is GroupCondition.DRAINING and one.order is None and one.end is None:
            one.condition = GroupCondition.GONE
            self.leaders[self.leaders.index(one)] = FakeLeader(self.service, next(self.names))
        if self.chance.random() < 0.6:
            one.work()
        one.report(is_answer_lost=is_rough and self.chance.random() < 0.2)

    def calm_down(self) -> None:
        for _ in range(2000):
            if not self.service.reader.unfinished():
                return
            self.step(is_rough=False)
            self.service.clock.now += 0.2
            self.service.dispatching.tick()

    def submit(self) -> None:
        try:
            job = self.service.submit(self.chance.choice(list(Priority)))
        except UnavailableError:
            return
        if isinstance(job, Job):
            self.accepted.append(job.id)

    def replace_leader(self) -> None:
        self.leaders[self.chance.randrange(3)] = FakeLeader(self.service, next(self.names))

    def cancel(self) -> None:
        unfinished = [job.id for job in self.service.reader.unfinished()]
        if unfinished:
            self.service.dispatching.cancel(self.chance.choice(unfinished))

    def drain(self) -> None:
        self.chance.choice(self.leaders).condition = GroupCondition.DRAINING

    def lose_ranks(self) -> None:
        victim = self.chance.choice(self.leaders)
        if victim.order is not None:
            victim.lose_ranks()

    def pass_time(self) -> None:
        self.service.silence(self.chance.choice([0.5, 3.0, 12.0]))


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_lost_every_accepted_job_ends_once(service: Service, seed: int) -> None:
    storm = Storm(service, seed=seed)
    for _ in range(300):
        storm.rage()
    storm.calm_down()
    assert storm.accepted
    for job in map(service.job, storm.accepted):
        kinds = [event.kind.value for event in service.reader.events(job.id)]
        assert job.state.is_final, job
        assert job.error is None or job.error.code in ("group_lost", "gang_failed"), job
        assert sum(kind in ("completed", "failed", "cancelled") for kind in kinds) == 1
        if job.state is JobState.COMPLETED:
            assert service.shelf.is_committed(job.id, attempt=job.attempt)
            assert job.location == f"{job.id}/{job.attempt}"
