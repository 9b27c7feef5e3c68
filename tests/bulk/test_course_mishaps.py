"""Orders that get lost, reports that come twice, late, or from a lane that no longer has the row."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.bulk.course import Ending
from serve_app.bulk.outcomes import Code
from serve_app.bulk.table import RowState
from serve_app.schemas.bulk import BulkLimits
from tests.bulk.rows import error
from tests.bulk.world import FAILED, STARTING, Outcome, World, a_table, brought_down, ended, not_begun, run


def test_an_order_that_got_lost_is_sent_again(tmp_path: Path) -> None:
    world = World("a")
    world.lanes["a"].lost.add("row")
    with a_table(tmp_path, {"row": 2.0}) as table:
        assert run(world.course(table)) is Ending.FINISHED
    assert [order.attempt for _, _, order in world.sent] == [1, 1]
    assert 30 < world.sent[1][0] - world.sent[0][0] < 32
    assert "missed" in [event for event, _ in world.steps]


def test_an_order_that_got_lost_on_its_way_to_a_group_that_gave_up_is_sent_to_another(tmp_path: Path) -> None:
    world = World("a", "b")
    world.lanes["a"].lost.add("row")
    world.after(2, lambda: setattr(world.lanes["a"], "condition", FAILED))
    with a_table(tmp_path, {"row": 2.0}) as table:
        assert run(world.course(table)) is Ending.FINISHED
    assert [lane for _, lane, _ in world.sent] == ["a", "b"]


def test_an_order_is_not_given_up_because_its_lane_is_slow_to_answer(tmp_path: Path) -> None:
    world = World("a")
    first, really = world.look(), world.look
    world.look = lambda: first if world.now < 200 else really()  # type: ignore[method-assign]
    with a_table(tmp_path, {"row": 100.0}) as table:
        assert run(world.course(table)) is Ending.FINISHED
    assert len(world.sent) == 1


def test_an_order_is_not_given_up_while_its_lane_starts_anew(tmp_path: Path) -> None:
    world = World("a", "b")
    world.lanes["a"].lost.add("row")

    def fall_silent() -> None:
        world.lanes["a"].condition = STARTING

    world.after(1, fall_silent)
    world.after(300, lambda: ended(world.sent[0][2], "a", not_begun()))
    with a_table(tmp_path, {"row": 2.0}) as table:
        run(world.course(table))
    assert world.sent[1][0] > 300


def test_an_order_that_nobody_tells_of_is_taken_from_a_lane_that_never_starts_again(tmp_path: Path) -> None:
    world = World("a", "b", limits=BulkLimits(no_lane_s=600.0))
    world.lanes["a"].lost.add("row")
    world.after(1, lambda: setattr(world.lanes["a"], "condition", STARTING))
    with a_table(tmp_path, {"row": 2.0, "other": 1.0}) as table:
        assert run(world.course(table)) is Ending.FINISHED
    assert [lane for _, lane, order in world.sent if order.custom_id == "row"] == ["a", "b"]
    assert world.now == pytest.approx(603, abs=2)


@pytest.mark.parametrize(
    ("late", "ends_at_s"), [(error(Code.TIMEOUT), 91.0), (brought_down(), 91.0), (not_begun(), 91.0), (None, 40.0)]
)
def test_of_a_lane_that_a_row_was_taken_from_only_a_video_counts(
    tmp_path: Path, late: Outcome, ends_at_s: float
) -> None:
    world = World("a")
    world.lanes["a"].lost.add("row")
    world.after(40, lambda: ended(world.sent[0][2], "the lane of before", late))
    with a_table(tmp_path, {"row": 60.0}) as table:
        assert run(world.course(table)) is Ending.FINISHED
    assert len(world.sent) == 2
    assert (len(world.results), len(world.bad)) == (1, 0)
    assert world.now == pytest.approx(ends_at_s, abs=1)


def test_reports_that_come_twice_or_too_late_change_nothing(tmp_path: Path) -> None:
    world = World("a")
    with a_table(tmp_path, {"first": 5.0, "second": 4.0}) as table:
        for outcome in (None, error(Code.RANK_DIED), brought_down()):
            world.after(6, lambda outcome=outcome: ended(world.sent[0][2], "a", outcome))  # type: ignore[misc]
        run(world.course(table))
        assert table.counts()[RowState.DONE] == 2
    assert [result["custom_id"] for result in world.results] == ["first", "second"]
    assert world.bad == []
