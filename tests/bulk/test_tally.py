"""What a run has achieved and spent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve_app.bulk.lanes.messages import LaneStatus, RowReport
from serve_app.bulk.outcomes import Code
from serve_app.bulk.tally import Tally
from serve_app.jobs.messages import GroupCondition
from tests.bulk.rows import error


def made(custom_id: str, *, busy_s: float, seconds: float = 2.0) -> RowReport:
    return RowReport(1, 1, "a", result={"custom_id": custom_id, "seconds": seconds}, busy_s=busy_s)


def lane(condition: GroupCondition) -> LaneStatus:
    return LaneStatus("a", condition)


def told(tally: Tally) -> dict[str, Any]:
    return json.loads(json.dumps(tally.as_json()))  # type: ignore[no-any-return]


def test_before_the_first_row_there_is_nothing_to_tell() -> None:
    figures = told(Tally(num_ranks=4))
    assert figures["gpu_s"] == {"useful": 0.0, "retried": 0.0, "idle": 0.0}
    assert figures["video_s_per_gpu_hour"] is None
    assert (figures["errors_by_code"], figures["last_error"], figures["slowest_rows"]) == ({}, None, [])


def test_gpu_seconds_are_those_of_all_ranks_of_a_lane() -> None:
    tally = Tally(num_ranks=4)
    tally.count(made("a", busy_s=10.0), predicted_s=8.0)
    tally.count(RowReport(1, 1, "a", error=error(Code.TIMEOUT), busy_s=5.0), predicted_s=8.0)
    figures = told(tally)
    assert figures["gpu_s"] == {"useful": 40.0, "retried": 20.0, "idle": 0.0}
    assert (figures["predicted_s"], figures["actual_s"]) == (8.0, 10.0)
    assert figures["video_s"] == 2.0
    assert figures["video_s_per_gpu_hour"] == 120.0
    assert figures["attempts"] == 2


def test_lanes_that_could_work_and_had_nothing_were_idle() -> None:
    tally = Tally(num_ranks=2)
    ready, busy = lane(GroupCondition.READY), lane(GroupCondition.BUSY)
    tally.look([ready, busy, lane(GroupCondition.STARTING)], now=100.0)
    tally.look([ready, busy, lane(GroupCondition.FAILED)], now=110.0)
    tally.count(made("a", busy_s=8.0), predicted_s=8.0)
    assert told(tally)["gpu_s"] == {"useful": 16.0, "retried": 0.0, "idle": 24.0}


def test_a_group_with_two_lanes_is_there_once() -> None:
    tally = Tally(num_ranks=4, lanes_per_group=2)
    lanes = [lane(GroupCondition.BUSY), lane(GroupCondition.READY)]
    tally.look(lanes, now=100.0)
    tally.look(lanes, now=110.0)
    tally.count(made("a", busy_s=10.0), predicted_s=8.0)
    assert tally.num_ready == 1
    assert told(tally)["gpu_s"] == {"useful": 40.0, "retried": 0.0, "idle": 0.0}


@pytest.mark.parametrize(
    "report",
    [
        RowReport(1, 1, "a", error=error(Code.NODE_LOST), is_begun=False, busy_s=3.0),
        RowReport(1, 1, "a", error=error(Code.CANCELLED), busy_s=3.0),
    ],
)
def test_an_attempt_that_nobody_began_or_that_was_stopped_is_none_but_took_its_time(report: RowReport) -> None:
    tally = Tally(num_ranks=1)
    tally.count(report, predicted_s=1.0)
    figures = told(tally)
    assert (figures["attempts"], figures["failed_attempts_by_code"], figures["last_error"]) == (0, {}, None)
    assert figures["gpu_s"]["retried"] == 3.0


def test_a_video_that_was_there_already_is_not_what_was_predicted() -> None:
    tally = Tally(num_ranks=1)
    tally.count(made("a", busy_s=0.0), predicted_s=50.0)
    assert (told(tally)["predicted_s"], told(tally)["actual_s"]) == (0.0, 0.0)


def test_errors_are_counted_by_row_and_by_attempt_and_the_last_is_shown() -> None:
    tally = Tally(num_ranks=1)
    for code in (Code.TIMEOUT, Code.RANK_DIED, Code.RANK_DIED):
        tally.count(RowReport(1, 1, "a", error=error(code, f"it was {code}")), predicted_s=1.0)
    tally.count_bad(error(Code.RANK_DIED))
    tally.count_bad(error(Code.INPUT_MISSING))
    figures = told(tally)
    assert figures["errors_by_code"] == {"RANK_DIED": 1, "INPUT_MISSING": 1}
    assert figures["failed_attempts_by_code"] == {"TIMEOUT": 1, "RANK_DIED": 2}
    assert figures["last_error"]["message"] == "it was RANK_DIED"


def test_the_slowest_rows_are_shown_and_only_a_few() -> None:
    tally, times = Tally(num_ranks=1), [float(number * 7 % 41) for number in range(1, 40)]
    for number, busy_s in enumerate(times):
        tally.count(made(f"row-{number}", busy_s=busy_s), predicted_s=1.0)
    slowest = told(tally)["slowest_rows"]
    assert [row["seconds"] for row in slowest] == sorted(times, reverse=True)[:10]
    assert slowest[0]["custom_id"] == f"row-{times.index(max(times))}"


def test_time_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally(num_ranks=1, started_at=1000.0)
    monkeypatch.setattr("time.time", lambda: 1012.34)
    assert told(tally)["elapsed_s"] == 12.3
