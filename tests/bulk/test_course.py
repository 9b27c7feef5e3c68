"""The driver's loop: which row goes where, what is tried again, and when it is over. Time is the world's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk.course import Ending
from serve_app.bulk.identity import row_key
from serve_app.bulk.lanes.messages import RowOrder
from serve_app.bulk.outcomes import Code
from serve_app.bulk.plan import makespan
from serve_app.bulk.table import RowState, RowTable
from serve_app.errors import UnavailableError
from serve_app.schemas.bulk import BulkLimits
from tests.bulk.rows import error, planned
from tests.bulk.world import (
    FAILED,
    READY,
    STARTING,
    Outcome,
    World,
    a_table,
    brought_down,
    failing,
    not_begun,
    run,
    sent_rows,
)


def test_every_row_is_made_the_longest_first(tmp_path: Path) -> None:
    world = World("a")
    with a_table(tmp_path, {"short": 1.0, "longest": 9.0, "long": 5.0}) as table:
        assert run(world.course(table)) is Ending.FINISHED
        assert table.counts()[RowState.DONE] == 3
    assert sent_rows(world) == ["longest", "long", "short"]
    assert [result["custom_id"] for result in world.results] == ["longest", "long", "short"]


def test_an_order_has_all_that_its_lane_needs(tmp_path: Path) -> None:
    world = World("a")
    with RowTable(tmp_path / "rows.sqlite3") as table:
        row = planned("row", spec={"seconds": 2.0}, archive_name="Spring")
        row.origin.update({"metadata": {"k": "v"}, "warnings": ["small"]})  # type: ignore[attr-defined]
        table.add(row)
        run(world.course(table))
    ((_, _, order),) = world.sent
    assert (order.custom_id, order.attempt, order.spec) == ("row", 1, {"seconds": 2.0})
    assert order.row_key == row_key("body of row", model="m")
    assert (order.metadata, order.warnings, order.archive_name) == ({"k": "v"}, ("small",), "Spring")


@contextmanager
def limits_of(tmp_path: Path, seconds: dict[str, float], **limits: Any) -> Iterator[list[float]]:
    world = World("a", limits=BulkLimits(**limits))
    with a_table(tmp_path, seconds) as table:
        run(world.course(table, at_once=1))
    yield [order.limit_s for _, _, order in world.sent]


def test_a_row_may_take_three_times_what_is_predicted_at_the_pace_of_the_rows_before(tmp_path: Path) -> None:
    world = World("a", limits=BulkLimits(row_least_s=1.0))
    with RowTable(tmp_path / "rows.sqlite3") as table:
        for name, predicted_s in (("first", 10.0), ("second", 5.0)):
            table.add(planned(name, predicted_s=predicted_s, spec={"seconds": predicted_s * 4}))
        run(world.course(table, at_once=1))
    assert [order.limit_s for _, _, order in world.sent] == [30.0, 60.0]


def test_limits_of_rows_have_bounds(tmp_path: Path) -> None:
    with limits_of(tmp_path, {"long": 1000.0, "short": 1.0}, row_least_s=300.0) as limits:
        assert limits == [3000.0, 300.0]
    with limits_of(tmp_path, {"long": 1000.0, "short": 1.0}, row_least_s=300.0, row_most_s=1800.0) as limits:
        assert limits == [1800.0, 300.0]
    with limits_of(tmp_path, {"short": 1.0}, row_least_s=300.0, row_most_s=10.0) as limits:
        assert limits == [10.0]


def test_while_many_wait_every_lane_has_its_next_row_already(tmp_path: Path) -> None:
    world = World("a", "b")
    with a_table(tmp_path, 20) as table:
        run(world.course(table))
    at_first = [(lane, order.custom_id) for now, lane, order in world.sent if now <= 0.5]
    assert Counter(lane for lane, _ in at_first) == {"a": 2, "b": 2}
    assert at_first[0][0] != at_first[1][0]


def test_at_the_tail_no_row_waits_at_a_lane_that_works(tmp_path: Path) -> None:
    world = World("a", "b", "c")
    loads: list[tuple[int, int]] = []
    really = world.send

    def send(lane: str, order: RowOrder) -> None:
        loads.append((len(world.lanes[lane].orders), table.counts()[RowState.PENDING]))
        really(lane, order)

    world.send = send  # type: ignore[method-assign]
    with a_table(tmp_path, {f"row-{number}": float(number) for number in range(1, 30)}) as table:
        run(world.course(table))
    assert max(load for load, _ in loads) == 1
    assert all(waiting >= 3 for load, waiting in loads if load)


@pytest.mark.parametrize("num_lanes", [1, 3, 8])
def test_the_last_lane_ends_when_the_plan_says(tmp_path: Path, num_lanes: int) -> None:
    world = World(*(f"lane-{number}" for number in range(num_lanes)))
    seconds = {f"row-{number}": 20.0 + number * 37 % 91 for number in range(100)}
    with a_table(tmp_path, seconds) as table:
        planned_s = makespan(table.predicted(), num_lanes)
        run(world.course(table))
    assert world.now <= planned_s * 1.05 + 1


def test_a_failed_attempt_is_repeated_after_a_while_that_doubles(tmp_path: Path) -> None:
    world = World("a", outcome=failing(error(Code.TIMEOUT), error(Code.TIMEOUT)))
    with a_table(tmp_path, 1) as table:
        assert run(world.course(table)) is Ending.FINISHED
        assert table.counts()[RowState.DONE] == 1
    times = [now for now, _, _ in world.sent]
    assert [order.attempt for _, _, order in world.sent] == [1, 2, 3]
    assert 7.5 <= times[1] - times[0] - 1 <= 12.5 + 1
    assert 15 <= times[2] - times[1] - 1 <= 25 + 1
    assert world.bad == []


def test_others_go_on_while_a_row_waits_for_its_next_attempt(tmp_path: Path) -> None:
    world = World("a", outcome=lambda _: error(Code.TIMEOUT) if sent_rows(world) == ["long"] else None)
    with a_table(tmp_path, {"long": 9.0, "b": 2.0, "c": 1.0}) as table:
        run(world.course(table, at_once=1))
    assert sent_rows(world) == ["long", "b", "c", "long"]


def test_after_the_last_attempt_a_row_is_reported_as_it_was_written(tmp_path: Path) -> None:
    world = World("a", outcome=lambda order: error(Code.TIMEOUT, f"attempt {order.attempt} took too long"))
    with a_table(tmp_path, 1) as table:
        course = world.course(table)
        assert run(course) is Ending.FINISHED
        assert table.counts()[RowState.FAILED] == 1
    (bad,) = world.bad
    assert (bad.number, bad.custom_id, bad.base, bad.original) == (1, "row-1", "/in", {"custom_id": "row-1"})
    assert bad.error.message == "attempt 3 took too long"
    assert course.tally.codes == {"TIMEOUT": 1}
    assert course.tally.failed_attempts == {"TIMEOUT": 3}


@pytest.mark.parametrize("code", [Code.INPUT_MISSING, Code.ROW_INVALID, Code.NEVER_FITS])
def test_what_is_wrong_with_a_row_is_told_at_its_first_attempt(tmp_path: Path, code: Code) -> None:
    world = World("a", outcome=lambda _: error(code))
    with a_table(tmp_path, 1) as table:
        run(world.course(table))
    assert len(world.sent) == len(world.bad) == 1


def test_a_row_under_which_two_groups_failed_is_left_alone_and_says_so(tmp_path: Path) -> None:
    world = World("a", "b", outcome=lambda _: brought_down(), limits=BulkLimits(max_attempts=9))
    with a_table(tmp_path, 1) as table:
        assert run(world.course(table)) is Ending.FINISHED
    assert len(world.sent) == 2
    assert "2 groups failed under this row, so it is left alone" in world.bad[0].error.message


def test_a_lane_whose_group_has_just_failed_gets_nothing_before_it_is_ready_again(tmp_path: Path) -> None:
    world = World("a", "b")

    def outcome(order: RowOrder) -> Outcome:
        if order.custom_id != "row-1":
            return None
        world.lanes["a"].condition = STARTING
        world.after(60, lambda: setattr(world.lanes["a"], "condition", READY))
        return brought_down()

    world.outcome = outcome
    with a_table(tmp_path, {"row-1": 5.0, **{f"row-{number}": 4.0 for number in range(2, 30)}}) as table:
        run(world.course(table, at_once=1))
    failed_at = 5.5
    of_a = [now for now, lane, _ in world.sent if lane == "a"]
    assert not [now for now in of_a if failed_at <= now < failed_at + 60]
    assert [now for now in of_a if now >= failed_at + 60]


@pytest.mark.parametrize("condition", [STARTING, FAILED])
def test_a_lane_that_is_not_ready_gets_nothing(tmp_path: Path, condition: Any) -> None:
    world = World("a", "b")
    world.lanes["a"].condition = condition
    with a_table(tmp_path, 5) as table:
        assert run(world.course(table)) is Ending.FINISHED
    assert {lane for _, lane, _ in world.sent} == {"b"}


def test_rows_wait_for_lanes_that_start(tmp_path: Path) -> None:
    world = World("a")
    world.lanes["a"].condition = STARTING
    world.after(900, lambda: setattr(world.lanes["a"], "condition", READY))
    with a_table(tmp_path, 1) as table:
        assert run(world.course(table)) is Ending.FINISHED
    assert world.sent[0][0] == pytest.approx(900, abs=1)


def test_without_any_lane_left_the_job_ends_with_the_reasons(tmp_path: Path) -> None:
    world = World("a", "b")
    for lane in world.lanes.values():
        lane.condition = FAILED
    with a_table(tmp_path, 3) as table, pytest.raises(UnavailableError, match="a: the reason; b: the reason"):
        run(world.course(table))


def test_a_job_whose_lanes_never_start_again_ends_after_a_while_and_says_why(tmp_path: Path) -> None:
    world = World("a", "b", limits=BulkLimits(no_lane_s=600.0))
    world.lanes["b"].condition = FAILED
    world.after(100, lambda: setattr(world.lanes["a"], "condition", STARTING))  # its node is lost
    told = r"rows wait, and no group has been ready for 600 s \(a: the reason; b: the reason\); .*same command"
    with a_table(tmp_path, {"long": 90.0, "b": 20.0, "c": 1.0}) as table, pytest.raises(UnavailableError, match=told):
        run(world.course(table, at_once=1))
    assert world.now == pytest.approx(700, abs=2)


def test_a_watch_without_rows_waits_for_its_lanes_as_long_as_it_takes(tmp_path: Path) -> None:
    world = World("a", limits=BulkLimits(no_lane_s=600.0))
    world.lanes["a"].condition = STARTING
    world.after(5000 + 590, lambda: setattr(world.lanes["a"], "condition", READY))
    with a_table(tmp_path, 0) as table:

        def more() -> bool:
            if world.now >= 5000 and not table.counts()[RowState.DONE]:
                table.add(planned("late", spec={"seconds": 1.0}))
            return world.now < 6000

        assert run(world.course(table), more=more) is Ending.FINISHED
    assert sent_rows(world) == ["late"]


def test_a_way_that_breaks_down_ends_the_job(tmp_path: Path) -> None:
    world = World("a")
    world.breaks_down_with = RuntimeError("the way is gone")
    with a_table(tmp_path, 3) as table, pytest.raises(RuntimeError, match="the way is gone"):
        run(world.course(table))


def test_an_attempt_that_no_rank_began_costs_the_row_nothing(tmp_path: Path) -> None:
    times = iter(range(10))
    world = World("a", outcome=lambda _: not_begun() if next(times) < 6 else None)
    with a_table(tmp_path, 1) as table:
        course = world.course(table)
        assert run(course) is Ending.FINISHED
    assert [order.attempt for _, _, order in world.sent] == [1] * 7
    assert world.sent[1][0] - world.sent[0][0] >= 5
    assert course.tally.num_attempts == 1
    assert not course.breaker.num_failed


def test_the_breaker_pauses_the_job_and_lets_running_rows_end(tmp_path: Path) -> None:
    world = World("a", "b", outcome=lambda order: None if order.seq == 1 else error(Code.RANK_DIED))
    with a_table(tmp_path, {"long": 500.0, **{f"row-{number}": 1.0 for number in range(99)}}) as table:
        course = world.course(table, at_once=1)
        assert run(course) is Ending.BROKEN
        counts = table.counts()
    assert course.breaker.is_open
    assert [result["custom_id"] for result in world.results] == ["long"]
    assert (counts[RowState.RUNNING], counts[RowState.FAILED], counts[RowState.DONE]) == (0, 0, 1)
    assert counts[RowState.PENDING] == 99
    assert len(world.sent) == 21
    assert course.tally.last_error is not None
    assert course.tally.failed_attempts == {"RANK_DIED": 20}


def test_a_failure_now_and_then_does_not_pause_the_job(tmp_path: Path) -> None:
    limits = BulkLimits(max_attempts=1)
    world = World("a", outcome=lambda order: None if order.seq % 6 else error(Code.TIMEOUT), limits=limits)
    with a_table(tmp_path, 200) as table:
        assert run(world.course(table)) is Ending.FINISHED
    assert len(world.bad) == 33


def test_bad_rows_do_not_pause_the_job(tmp_path: Path) -> None:
    world = World("a", outcome=lambda _: error(Code.INPUT_MISSING))
    with a_table(tmp_path, 60) as table:
        assert run(world.course(table)) is Ending.FINISHED
    assert len(world.bad) == 60


def test_a_stop_ends_what_runs_and_hands_every_row_back(tmp_path: Path) -> None:
    world = World("a", "b")
    with a_table(tmp_path, {f"row-{number}": 100.0 for number in range(9)}) as table:
        ending = run(world.course(table), is_stopped=lambda: world.now > 120)
        assert ending is Ending.CANCELLED
        counts = table.counts()
        waiting = table.find_pending(world.sent[-1][2].custom_id)
    assert world.now < 125
    assert (counts[RowState.DONE], counts[RowState.PENDING], counts[RowState.RUNNING]) == (2, 7, 0)
    assert waiting is not None
    assert waiting.attempts == 0
    assert world.bad == []


def test_a_stop_does_not_wait_for_lanes_that_say_nothing(tmp_path: Path) -> None:
    world = World("a", limits=BulkLimits(stop_s=20.0))
    world.lanes["a"].is_mute = True
    with a_table(tmp_path, {"row": 1000.0}) as table:
        assert run(world.course(table), is_stopped=lambda: world.now >= 10) is Ending.CANCELLED
        assert table.counts()[RowState.PENDING] == 1
    assert world.now == pytest.approx(30, abs=1)
    assert world.steps[-1][0] == "abandoned"


def test_a_row_that_is_done_while_the_job_stops_is_done(tmp_path: Path) -> None:
    world = World("a")
    world.stop = lambda: None  # type: ignore[method-assign]
    with a_table(tmp_path, {"row": 10.0, "next": 5.0}) as table:
        assert run(world.course(table, at_once=1), is_stopped=lambda: world.now >= 8) is Ending.CANCELLED
        assert table.counts()[RowState.DONE] == 1
    assert sent_rows(world) == ["row"]


def test_rows_that_come_while_others_run_are_made_too(tmp_path: Path) -> None:
    world = World("a")
    with a_table(tmp_path, 1) as table:

        def more() -> bool:
            if world.now > 50 and table.counts()[RowState.DONE] == 1:
                table.add(planned("late", number=2, spec={"seconds": 1.0}))
            return world.now < 100

        assert run(world.course(table), more=more) is Ending.FINISHED
    assert sent_rows(world) == ["row-1", "late"]
    assert world.now >= 100


def test_an_empty_table_is_done(tmp_path: Path) -> None:
    world = World("a")
    with a_table(tmp_path, 0) as table:
        assert run(world.course(table)) is Ending.FINISHED
    assert world.sent == []


def test_it_is_told_how_long_the_rest_takes(tmp_path: Path) -> None:
    world, told = World("a", "b"), list[float | None]()
    with RowTable(tmp_path / "rows.sqlite3") as table:
        for number in range(1, 9):
            table.add(planned(f"row-{number}", number=number, predicted_s=10.0, spec={"seconds": 20.0}))
        course = world.course(table)
        run(course, on_look=lambda: told.append(course.rest_s()))
    assert told[0] is None
    known = [rest_s for rest_s in told if rest_s is not None]
    assert 6 * 20.0 / 2 in known
    assert known[-1] == 0
    assert sorted(known, reverse=True) == known


def test_every_step_is_in_the_ledger(tmp_path: Path) -> None:
    world = World("a", outcome=failing(error(Code.TIMEOUT)))
    with a_table(tmp_path, 1) as table:
        run(world.course(table))
    assert [event for event, _ in world.steps] == ["ordered", "failed", "ordered", "done"]
    about = world.steps[1][1]
    assert (about["custom_id"], about["attempt"], about["group"], about["busy_s"]) == ("row-1", 1, "a", 1.0)
    assert about["error"]["code"] == "TIMEOUT"
