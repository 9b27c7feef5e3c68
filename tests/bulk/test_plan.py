"""The plan: what of a manifest will be rendered, how long that takes, and which rows are there twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.bulk.outcomes import Code, RowError
from serve_app.bulk.plan import Plan, fill, makespan
from serve_app.bulk.row import BadRow
from serve_app.bulk.table import PlannedRow, RowTable
from tests.bulk.rows import planned


@pytest.fixture
def table(tmp_path: Path) -> Iterator[RowTable]:
    with RowTable(tmp_path / "rows.sqlite3") as opened:
        yield opened


def filled(table: RowTable, *rows: PlannedRow | BadRow) -> tuple[Plan, list[BadRow]]:
    plan, bad = Plan(), list[BadRow]()
    fill(table, rows, plan, on_bad=bad.append)
    return plan, bad


def bad_row(number: int, *, code: Code = Code.INPUT_MISSING, custom_id: str = "") -> BadRow:
    return BadRow(number, {"raw": "x"}, "/in", RowError(code, f"wrong with {number}", "inputs"), custom_id=custom_id)


@pytest.mark.parametrize(
    ("seconds", "num_lanes", "expected"),
    [([], 3, 0.0), ([5.0], 3, 5.0), ([5.0, 4.0, 3.0], 1, 12.0), ([5.0, 4.0, 3.0, 3.0], 2, 8.0), ([4.0] * 5, 4, 8.0)],
)
def test_the_last_lane_is_done_when_the_longest_rows_go_first(
    seconds: list[float], num_lanes: int, expected: float
) -> None:
    assert makespan(seconds, num_lanes) == expected


@given(seconds=st.lists(st.integers(1, 50), min_size=1, max_size=6), num_lanes=st.integers(1, 3))
@settings(deadline=None)
def test_the_longest_first_is_never_a_third_worse_than_the_best(seconds: list[int], num_lanes: int) -> None:
    best = min(
        max(sum(one for one, lane in zip(seconds, lanes, strict=True) if lane == wanted) for wanted in range(num_lanes))
        for lanes in itertools.product(range(num_lanes), repeat=len(seconds))
    )
    assert best <= makespan(sorted(seconds, reverse=True), num_lanes) <= best * (4 / 3)


def test_the_plan_tells_rows_time_and_cost(table: RowTable) -> None:
    plan, _ = filled(
        table,
        planned("a", number=1, predicted_s=1800.0, num_frames=50),
        bad_row(2),
        planned("b", number=3, predicted_s=3600.0, num_frames=100),
        bad_row(4, code=Code.PROMPT_INVALID),
        bad_row(5),
    )
    told = plan.as_json(table, num_lanes=2, num_ranks=4)
    assert (told["rows"], told["good"]) == (5, 2)
    assert told["bad"] == {"INPUT_MISSING": 2, "PROMPT_INVALID": 1}
    assert (told["video_s"], told["gpu_hours"], told["eta_s"]) == (6.0, 6.0, 3600.0)
    assert (told["lanes"], told["gpus_per_lane"]) == (2, 4)


def test_a_manifest_without_a_good_row_has_a_plan_too(table: RowTable) -> None:
    plan, _ = filled(table, bad_row(1))
    told = plan.as_json(table, num_lanes=3, num_ranks=1)
    assert (told["good"], told["eta_s"], told["gpu_hours"]) == (0, 0.0, 0.0)


def test_bad_rows_are_told_at_once_and_the_first_few_are_shown(table: RowTable) -> None:
    plan, told = filled(table, *(bad_row(number) for number in range(1, 30)))
    assert [row.number for row in told] == list(range(1, 30))
    assert plan.num_bad == 29
    assert len(plan.examples) == 10
    assert plan.examples[0] == "row 1: wrong with 1"


def test_an_example_has_the_id_where_there_is_one(table: RowTable) -> None:
    plan, _ = filled(table, bad_row(3, custom_id="intro"))
    assert plan.examples == ["row 3 (intro): wrong with 3"]


@pytest.mark.parametrize("second", ["intro", "Intro", "INTRO"])
def test_an_id_that_is_there_twice_is_told_with_both_numbers(table: RowTable, second: str) -> None:
    plan, (twice,) = filled(table, planned("Intro", number=4), planned("other", number=5), planned(second, number=11))
    assert (twice.number, twice.custom_id, twice.error.code) == (11, second, Code.DUPLICATE_ID)
    assert "row 11" in twice.error.message
    assert "row 4 " in twice.error.message
    assert (plan.num_rows, plan.num_bad) == (3, 1)


@pytest.mark.parametrize("second", ["intro", "INTRO"])
def test_the_id_of_a_bad_row_is_taken_too(table: RowTable, second: str) -> None:
    plan, (_, twice, bad) = filled(
        table,
        bad_row(4, custom_id="intro"),
        planned(second, number=11),
        bad_row(12, custom_id="intro"),
        planned("other", number=13),
    )
    assert (twice.number, twice.custom_id, twice.error.code) == (11, second, Code.DUPLICATE_ID)
    assert "row 11 " in twice.error.message
    assert "row 4 " in twice.error.message
    assert (bad.number, bad.error.code) == (12, Code.INPUT_MISSING)
    assert (plan.num_rows, plan.num_bad) == (4, 3)


def test_the_id_of_a_row_whose_archive_name_was_taken_is_taken(table: RowTable) -> None:
    _, (_, twice) = filled(
        table,
        planned("a", number=1, archive_name="spring"),
        planned("b", number=2, archive_name="spring"),
        planned("b", number=3, archive_name="summer"),
    )
    assert (twice.number, twice.error.code) == (3, Code.DUPLICATE_ID)
    assert "row 2 " in twice.error.message


def test_the_row_that_had_an_id_first_is_told(table: RowTable) -> None:
    _, (_, third) = filled(table, planned("a", number=1), bad_row(2, custom_id="a"), planned("a", number=3))
    assert "row 1 " in third.error.message


def test_bad_rows_without_an_id_take_none(table: RowTable) -> None:
    plan, bad = filled(table, bad_row(1), bad_row(2), planned("a", number=3))
    assert (plan.num_rows, [row.number for row in bad]) == (3, [1, 2])


def test_what_was_written_of_a_row_that_is_there_twice_can_be_written_again(table: RowTable) -> None:
    _, (twice,) = filled(table, planned("a", number=1), planned("a", number=2))
    assert twice.as_json() == {
        "custom_id": "a",
        "base": "/in",
        "line": 2,
        "error": twice.error.as_json(),
    }


def test_a_row_whose_archive_name_is_taken_says_so(table: RowTable) -> None:
    _, (twice,) = filled(
        table, planned("a", number=1, archive_name="spring"), planned("b", number=2, archive_name="Spring")
    )
    assert twice.custom_id == "b"
    assert "row 1 " in twice.error.message
    assert "archive" in twice.error.message
