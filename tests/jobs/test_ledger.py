"""The ledger's answers, one by one: who is promised what, who is refused and why, and what becomes of a job."""

from __future__ import annotations

import math

import pytest

from serve_app.errors import InvalidRequestError
from serve_app.jobs.job import Priority
from serve_app.jobs.ledger import LedgerLimits
from serve_app.jobs.quote import MAX_DEADLINE_S, Admitted, Demand, Margin, Outcome, Place, Quote, Reason, Rejected
from tests.jobs.world import World


def quoted(outcome: Outcome) -> Quote:
    assert isinstance(outcome, Admitted), outcome
    return outcome.quote


def refused(outcome: Outcome) -> Rejected:
    assert isinstance(outcome, Rejected), outcome
    return outcome


@pytest.mark.parametrize(
    ("priority", "seconds", "promise_in_s"),
    [
        (Priority.INTERACTIVE, 100.0, 310.0),
        (Priority.STANDARD, 100.0, 7_200.0),
        (Priority.STANDARD, 4_000.0, 12_010.0),
        (Priority.BULK, 100.0, None),
    ],
)
def test_a_class_has_its_promise(priority: Priority, seconds: float, promise_in_s: float | None) -> None:
    assert quoted(World().ask(seconds, priority=priority)).promise_in_s == promise_in_s


@pytest.mark.parametrize("priority", Priority)
def test_a_deadline_of_ones_own_is_promised_whatever_the_class(priority: Priority) -> None:
    assert quoted(World().ask(100.0, priority=priority, deadline_s=150.0)).promise_in_s == 150.0


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, math.nan, math.inf, MAX_DEADLINE_S + 1, 1e308])
def test_a_deadline_that_is_none_is_refused(deadline_s: float) -> None:
    with pytest.raises(InvalidRequestError, match="is not between 0 and 604800") as error:
        Demand({"single": 1.0}, deadline_s=deadline_s)
    assert error.value.param == "deadline_s"


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_prediction_is_a_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0 and finite"):
        Demand({"single": seconds})


def test_the_earliest_promise_is_served_first_whatever_the_class() -> None:
    world = World()
    for deadline_s, priority in [(100.0, Priority.STANDARD), (90.0, Priority.BULK), (50.0, Priority.INTERACTIVE)]:
        world.ask(10.0, deadline_s=deadline_s, priority=priority)
    world.ask(10.0, deadline_s=40.0)
    world.finish_all()
    assert world.started == ["job0", "job3", "job2", "job1"]


def test_a_quote_tells_promise_and_expectation_and_takes_nothing() -> None:
    world = World(("single",) * 2)
    for _ in range(4):
        world.ask(30.0)
    demand = Demand({"single": 10.0})
    expected = Quote("single", 10.0, promise_in_s=7_200.0, start_in_s=60.0, finish_in_s=70.0, position=2)
    assert quoted(world.ledger.quote(demand)) == quoted(world.ledger.quote(demand)) == expected
    assert quoted(world.ask(10.0)) == expected
    assert world.ledger.place("job4") == Place(position=2, start_in_s=60.0, finish_in_s=70.0)
    assert world.ledger.place("job0") is None


def test_a_later_request_cannot_break_a_promise_and_hears_when_to_come_back() -> None:
    world = World()
    assert world.accepts(60.0, deadline_s=60.0)
    assert world.accepts(30.0, deadline_s=95.0)
    outcome = refused(world.ask(10.0, deadline_s=80.0))
    assert (outcome.reason, outcome.retry_after_s) == (Reason.NO_CAPACITY, pytest.approx(20.0))
    assert "all groups of layout single are promised to others" in outcome.message
    world.pass_time(19.9)
    assert not world.accepts(10.0, deadline_s=80.0)
    world.pass_time(0.1)
    assert quoted(world.ask(10.0, deadline_s=80.0)).finish_in_s == pytest.approx(80.0)


def test_the_longest_job_counts_on_several_groups() -> None:
    """Eight groups can do 80 s of work in 10 s, but not when the last of it takes 9 s and starts behind the rest."""
    world = World(("single",) * 8)
    for _ in range(8):
        assert world.accepts(2.0, deadline_s=2.0)
    assert refused(world.ask(9.0, deadline_s=10.0)).reason is Reason.NO_CAPACITY
    assert world.accepts(8.0, deadline_s=10.0)


def test_a_deadline_that_no_group_could_keep_says_what_is_needed_and_never_to_come_back() -> None:
    outcome = refused(World().ask(100.0, deadline_s=99.0))
    assert (outcome.reason, outcome.retry_after_s) == (Reason.DEADLINE_TOO_SHORT, None)
    assert outcome.figures == {"needed_s": 100.0, "deadline_s": 99.0}


def test_a_margin_is_kept_for_what_takes_longer_than_predicted() -> None:
    world = World(margin=Margin(ratio=0.1, per_job_s=2.0))
    assert refused(world.ask(100.0, deadline_s=111.0)).figures["needed_s"] == pytest.approx(112.0)
    assert world.accepts(100.0, deadline_s=113.0)


def test_the_layout_that_is_done_first_gets_the_job() -> None:
    world = World(("single", "stages=4,vae=1"))
    seconds = {"single": 100.0, "stages=4,vae=1": 30.0}
    layouts = [quoted(world.ask(seconds)).layout for _ in range(5)]
    assert layouts == ["stages=4,vae=1"] * 3 + ["single", "stages=4,vae=1"]
    assert quoted(world.ask({"single": 5.0})).layout == "single"


def test_where_no_group_is_nothing_is_promised() -> None:
    world = World(("single",))
    assert refused(world.ask({"stages=4,vae=1": 1.0})).reason is Reason.NO_GROUP
    world.lose("g0")
    for priority in Priority:
        outcome = refused(world.ask(1.0, priority=priority))
        assert (outcome.reason, outcome.retry_after_s) == (Reason.NO_GROUP, None)


def test_a_group_that_is_being_rebuilt_is_planned_on_but_starts_nothing() -> None:
    world = World(())
    world.layouts = ("single",)
    world.bring_back("g0", layout="single", ready_in_s=60.0)
    assert quoted(world.ask(10.0, deadline_s=80.0)).start_in_s == 60.0
    assert world.started == []
    assert refused(world.ask(10.0, deadline_s=69.0)).retry_after_s == pytest.approx(1.0)
    world.pass_time(50.0)
    world.bring_back("g0", layout="single")
    assert world.started == ["job0"]


def test_a_full_queue_says_when_there_is_room() -> None:
    world = World(max_waiting=2)
    for _ in range(3):
        assert world.accepts(50.0)
    world.pass_time(20.0)
    for priority in (Priority.STANDARD, Priority.BULK):
        outcome = refused(world.ask(1.0, priority=priority))
        assert (outcome.reason, outcome.retry_after_s) == (Reason.QUEUE_FULL, pytest.approx(30.0))


def test_a_service_that_shuts_down_takes_nothing_starts_nothing_and_forgets_nothing() -> None:
    world = World()
    world.ask(10.0)
    world.ask(10.0)
    world.ledger.close()
    assert refused(world.ask(1.0)).reason is Reason.DRAINING
    world.pass_time(100.0)
    assert (world.started, world.ledger.num_waiting) == (["job0"], 1)


def test_a_group_that_drains_finishes_its_job_and_gets_no_other() -> None:
    world = World(("single",) * 2)
    for _ in range(3):
        world.ask(10.0)
    world.ledger.drain_group("g0")
    world.pass_time(10.0)
    assert world.finished.keys() == {"job0", "job1"}
    assert world.ends.keys() == {"g1"}
    assert world.ledger.lose_group("g0") is None


def test_a_job_of_a_lost_group_waits_again_with_its_promise_before_those_promised_later() -> None:
    world = World(("single",) * 2)
    world.ask(50.0, deadline_s=100.0)
    world.ask(50.0, deadline_s=60.0)
    world.ask(50.0, deadline_s=200.0)
    world.pass_time(20.0)
    world.lose("g0")
    world.finish_all()
    assert world.started == ["job0", "job1", "job0", "job2"]


def test_bulk_of_a_lost_group_goes_back_to_the_head_of_its_line() -> None:
    world = World()
    for _ in range(3):
        world.ask(10.0, priority=Priority.BULK)
    world.lose("g0")
    world.bring_back("g0", layout="single")
    assert world.started == ["job0", "job0"]


def test_a_job_that_expires_before_it_starts_is_dropped_and_one_that_is_only_late_is_not() -> None:
    world = World()
    world.ask(50.0, deadline_s=100.0)
    world.ask(10.0, deadline_s=100.0)
    world.ask(10.0, priority=Priority.INTERACTIVE, deadline_s=None)
    world.ask(10.0, priority=Priority.STANDARD, deadline_s=None)
    world.reestimate("g0", rest_s=8_000.0)
    world.pass_time(99.0)
    assert world.dropped == set()
    world.pass_time(2.0)
    assert world.dropped == {"job1"}
    world.finish_all()
    assert world.finished.keys() == world.accepted - world.dropped


def test_retry_after_reckons_with_jobs_that_will_be_dropped() -> None:
    world = World()
    world.ask(10.0)
    world.ask(50.0, deadline_s=100.0)
    world.ask(200.0)
    world.reestimate("g0", rest_s=300.0)
    outcome = refused(world.ask(25.0, deadline_s=41.0))
    assert outcome.retry_after_s == pytest.approx(284.0)
    world.pass_time(outcome.retry_after_s)
    assert world.accepts(25.0, deadline_s=41.0)
    assert world.dropped == {"job1"}


def test_retry_after_is_found_behind_jobs_that_are_late_and_do_not_expire() -> None:
    world = World()
    for _ in range(2):
        world.ask(10.0, priority=Priority.INTERACTIVE)
    world.reestimate("g0", rest_s=100.0)
    assert refused(world.ask(10.0, deadline_s=15.0)).retry_after_s == pytest.approx(105.0)


def test_a_cancelled_job_makes_room() -> None:
    world = World()
    assert world.accepts(50.0, deadline_s=50.0)
    assert world.accepts(50.0, deadline_s=100.0)
    assert not world.accepts(40.0, deadline_s=100.0)
    assert not world.ledger.cancel("job0")
    assert world.ledger.cancel("job1")
    assert world.accepts(40.0, deadline_s=100.0)


def test_remaining_time_follows_the_pace_of_the_last_blocks() -> None:
    world = World()
    world.ask(100.0)
    group = world.ledger.groups["g0"]
    for block_seconds, rest_s in [(1.0, 40.0), (2.0, 40 * 1.3), (2.0, 40 * 1.51)]:
        world.ledger.progress("job0", blocks_left=40, block_seconds=block_seconds)
        assert group.free_at - world.clock.now == pytest.approx(rest_s)


def test_a_job_that_is_slower_than_predicted_makes_later_requests_be_refused() -> None:
    world = World()
    world.ask(10.0)
    demand = Demand({"single": 10.0}, deadline_s=25.0)
    assert isinstance(world.ledger.quote(demand), Admitted)
    world.reestimate("g0", rest_s=20.0)
    assert refused(world.ledger.quote(demand)).retry_after_s == pytest.approx(5.0)


@pytest.mark.parametrize("trouble", ["a group drains", "a job takes longer"])
def test_what_could_be_promised_before_a_trouble_is_refused_after_it(trouble: str) -> None:
    world = World(("single",) * 2)
    for _ in range(2):
        world.ask(50.0, deadline_s=50.0)
    world.ask(10.0, deadline_s=100.0)
    before_it = Demand({"single": 45.0}, deadline_s=99.0)
    assert isinstance(world.ledger.quote(before_it), Admitted)
    if trouble == "a group drains":
        world.ledger.drain_group("g1")
    else:
        world.reestimate("g1", rest_s=90.0)
    assert refused(world.ledger.quote(before_it)).reason is Reason.NO_CAPACITY


def test_a_job_is_no_longer_in_the_way_once_it_has_started() -> None:
    world = World(("single",) * 2)
    for _ in range(2):
        world.ask(10.0, deadline_s=10.0)
    world.ledger.restore("late", layout="single", seconds=300.0, promise_in_s=-1.0)
    world.ask(10.0, deadline_s=180.0)
    demand = Demand({"single": 25.0}, deadline_s=30.0)
    assert refused(world.ledger.quote(demand)).retry_after_s == pytest.approx(15.0)


def test_a_job_that_will_have_started_is_not_counted_twice() -> None:
    world = World()
    world.ask(10.0, deadline_s=10.0)
    world.ask(10.0, deadline_s=24.0)
    assert refused(world.ask(5.0, deadline_s=6.0)).retry_after_s == pytest.approx(19.0)


def test_after_a_restart_jobs_wait_and_run_as_before() -> None:
    world = World()
    ledger = world.ledger
    for job_id, promise_in_s in [("a", 50.0), ("b", -5.0), ("c", 60.0), ("d", None)]:
        ledger.restore(job_id, layout="single", seconds=10.0, promise_in_s=promise_in_s)
    ledger.adopt("a", group="g0")
    ledger.progress("a", blocks_left=3, block_seconds=1.0)
    assert [ledger.place(job_id) for job_id in "abcd"] == [
        None,
        Place(0, 3.0, 13.0),
        Place(1, 13.0, 23.0),
        Place(2, 23.0, 33.0),
    ]
    assert not world.accepts(10.0, deadline_s=22.0)
    ledger.release("a")
    assert ledger.start_idle()["g0"].job_id == "b"
    assert ledger.start_idle() == {}


@pytest.mark.parametrize(
    ("limits", "why"),
    [({"bulk_floor": 1.0}, "not a part"), ({"bulk_floor": -0.1}, "not a part"), ({"max_waiting": 0}, "below 1")],
)
def test_limits_make_sense(limits: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        LedgerLimits(**limits)  # type: ignore[arg-type]
