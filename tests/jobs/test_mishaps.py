"""What comes at the wrong moment: between two ticks, twice, late, or for something that is not there any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.errors import UnavailableError
from serve_app.jobs.job import Job, JobState, Priority
from serve_app.jobs.messages import GroupCondition
from serve_app.jobs.quote import Reason, Rejected
from serve_app.schemas.service import PoolConfig
from tests.jobs.leaders import POOL, TIMES, FakeLeader, Service


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "jobs.sqlite3")


@pytest.fixture
def leader(service: Service) -> FakeLeader:
    leader = FakeLeader(service, "g0")
    leader.report()
    return leader


def finish(leader: FakeLeader) -> None:
    while leader.order is not None:
        leader.work()
        leader.report()


def error_code(job: Job) -> str:
    assert job.error is not None, job
    return job.error.code


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_job_that_is_cancelled_when_its_deadline_has_passed_keeps_no_other_from_its_end(
    service: Service, leader: FakeLeader, is_deleted: bool
) -> None:
    service.accept()
    first, second = service.accept(deadline_s=100.0), service.accept(deadline_s=100.0)
    leader.report()
    service.clock.now += 101
    leader.report()  # the ledger drops both; the store hears of it with the next tick
    service.dispatching.cancel(first.id)
    if is_deleted:
        service.dispatching.delete(first.id)
    service.dispatching.tick()
    assert service.job(second.id).state is JobState.FAILED
    if not is_deleted:
        assert service.job(first.id).state is JobState.CANCELLED


def test_a_group_that_drains_goes_on_with_its_job_when_the_dispatcher_restarts(
    service: Service, leader: FakeLeader
) -> None:
    runs, waits = service.accept(), service.accept()
    leader.report()
    leader.work()
    leader.condition = GroupCondition.DRAINING
    leader.report()
    service.restart()
    answer = leader.report()
    assert answer is not None
    assert not answer.stops
    finish(leader)
    assert (service.job(runs.id).state, service.job(runs.id).attempt) == (JobState.COMPLETED, 1)
    assert service.job(waits.id).state is JobState.QUEUED


def test_an_attempt_that_was_stopped_though_nobody_cancelled_is_tried_again(
    service: Service, leader: FakeLeader
) -> None:
    job = service.accept()
    leader.report()
    leader.is_stopped = True
    leader.work()
    leader.report()
    assert (service.job(job.id).state, service.job(job.id).attempt) == (JobState.RUNNING, 2)


def test_an_attempt_that_was_given_up_is_stopped_although_its_next_one_waits_for_the_same_group(
    service: Service, leader: FakeLeader
) -> None:
    job = service.accept()
    leader.report()
    leader.work()
    service.silence(TIMES.lost_after_s + 1)
    leader.report(is_answer_lost=True)
    assert (service.job(job.id).group, service.job(job.id).attempt) == (leader.name, 2)
    leader.report()
    assert leader.is_stopped
    finish(leader)
    assert (service.job(job.id).state, service.job(job.id).location) == (JobState.COMPLETED, f"{job.id}/2")


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_late_video_of_a_job_that_has_ended_without_it_is_thrown_away(service: Service, is_cancelled: bool) -> None:
    leaders = [FakeLeader(service, f"g{number}") for number in range(1 if is_cancelled else 3)]
    job = None
    for leader in leaders:
        leader.report()
        job = job or service.accept()
        leader.report()
        assert leader.order is not None
        if is_cancelled:
            service.dispatching.cancel(job.id)
        service.silence(TIMES.lost_after_s + 1)
    assert job is not None
    assert service.job(job.id).state is (JobState.CANCELLED if is_cancelled else JobState.FAILED)
    late = leaders[-1]
    while late.order is not None:
        late.work()
    assert service.shelf.is_committed(job.id, attempt=len(leaders))
    late.report()
    assert late.end is None
    assert not service.shelf.is_committed(job.id, attempt=len(leaders))


def test_a_dispatcher_that_was_held_up_takes_its_own_silence_for_nobody_elses(
    service: Service, leader: FakeLeader
) -> None:
    job = service.accept()
    leader.report()
    service.clock.now += TIMES.lost_after_s + 5  # its disk did not answer, or its machine was suspended
    service.dispatching.tick()
    leader.report()
    assert (service.job(job.id).state, service.job(job.id).attempt) == (JobState.RUNNING, 1)
    service.restart()
    service.clock.now += TIMES.grace_s + 5
    service.dispatching.tick()
    leader.report()
    assert (service.job(job.id).state, service.job(job.id).attempt) == (JobState.RUNNING, 1)
    service.silence(TIMES.lost_after_s + 1)
    assert service.job(job.id).attempt == 2


@pytest.mark.parametrize("condition", [GroupCondition.GONE, GroupCondition.FAILED])
def test_a_group_without_a_future_is_answered_again_and_gets_nothing(
    service: Service, leader: FakeLeader, condition: GroupCondition
) -> None:
    service.silence(TIMES.grace_s + 1, heard=[leader])
    leader.condition = condition
    leader.report()
    assert isinstance(service.submit(), Rejected)
    answer = service.dispatching.answer_again(leader.name)
    assert (answer.order, answer.stops) == (None, False)
    assert [group["condition"] for group in service.groups()] == (
        [] if condition is GroupCondition.GONE else ["failed"]
    )


def test_jobs_of_a_pool_that_is_configured_no_more_end_and_say_why(service: Service, leader: FakeLeader) -> None:
    runs, waits, lost = service.accept(), service.accept(), service.accept()
    leader.report()
    other = FakeLeader(service, "g1")
    other.report()
    assert service.job(waits.id).state is JobState.RUNNING
    service.pools = (PoolConfig(name="renamed", model=POOL.model),)
    service.restart()
    assert error_code(service.job(lost.id)) == "pool_removed"
    leader.condition = GroupCondition.DRAINING
    leader.report()
    service.silence(TIMES.grace_s + 1, heard=[leader])
    assert error_code(service.job(waits.id)) == "pool_removed"
    finish(leader)
    assert service.job(runs.id).state is JobState.COMPLETED
    assert service.dispatching._disk._held == {}


def test_after_a_restart_nobody_is_told_that_there_are_no_groups_before_they_could_report(
    service: Service, leader: FakeLeader
) -> None:
    service.restart()
    with pytest.raises(UnavailableError):
        service.submit()
    assert not service.dispatching.capacity()["is_admitting"]
    leader.report()
    service.accept()
    service.restart()
    service.silence(TIMES.grace_s + 1)
    refused = service.submit()
    assert isinstance(refused, Rejected)
    assert refused.reason is Reason.NO_GROUP


def test_an_order_that_a_restart_kept_from_its_leader_is_given_again(service: Service, leader: FakeLeader) -> None:
    job = service.accept()
    service.restart()
    leader.report()
    assert leader.order is not None
    finish(leader)
    assert (service.job(job.id).state, service.job(job.id).attempt) == (JobState.COMPLETED, 1)


def test_a_group_that_takes_long_to_start_is_not_promised_as_if_it_were_there(service: Service) -> None:
    slow = FakeLeader(service, "g0", condition=GroupCondition.STARTING)
    slow.report()
    service.silence(300.0, heard=[slow])
    planned = service.accept(priority=Priority.STANDARD)
    assert planned.quote["start_in_s"] > 0


def test_nothing_is_kept_of_jobs_and_groups_that_are_gone(service: Service) -> None:
    for number in range(20):
        leader = FakeLeader(service, f"g{number}")
        leader.report()
        job = service.accept()
        leader.report()
        service.dispatching.cancel(job.id)
        match number % 4:
            case 0:
                leader.report()
                finish(leader)
            case 1:
                leader.lose_ranks()
            case 2:
                service.restart()
        leader.condition = GroupCondition.GONE
        leader.report()
        service.silence(TIMES.lost_after_s + TIMES.grace_s)
        assert service.job(job.id).state is JobState.CANCELLED
    core = service.dispatching
    assert (core._stops, core._orders, core._roll.reports(), core._unheard) == (set(), {}, [], set())
    assert (core._disk._held, core._ledger.groups, core._ledger.num_waiting) == ({}, {}, 0)


def test_one_video_that_took_absurdly_long_does_not_make_every_deadline_too_short(
    service: Service, leader: FakeLeader
) -> None:
    for inference_s in (2.0, 2.0, 3000.0):
        leader.inference_s = inference_s
        service.accept()
        leader.report()
        finish(leader)
    service.accept(deadline_s=60.0)
    service.restart()
    leader.report()
    service.accept(deadline_s=60.0)
