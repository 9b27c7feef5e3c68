"""The report's arithmetic, on outcomes made up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from load_tests.arrivals import Arrival
from load_tests.client import Outcome, to_json
from load_tests.playback import Playback
from load_tests.report import Figures, Tolerance, percentile, summarize, table


def outcome(at_s: float = 0.0, *, slip_s: float | None = 0.001, **seen: Any) -> Outcome:
    return Outcome(Arrival(at_s, "standard", "64x64", 1), slip_s=slip_s, **seen)


def made(at_s: float = 0.0, *, ended_s: float = 5.0, promise_s: float | None = 10.0, **seen: Any) -> Outcome:
    told = {"status": 200, "answered_s": 0.02, "video_id": "video_1", "ending": "completed", "took_s": ended_s, **seen}
    return outcome(at_s, ended_s=ended_s, promise_s=promise_s, **told)


def refused(at_s: float = 0.0, *, answered_s: float = 0.01, code: str = "no_capacity") -> Outcome:
    return outcome(at_s, status=503, answered_s=answered_s, refusal=code, retry_after_s=7.0)


def summary_of(*outcomes: Outcome) -> dict[str, Any]:
    return summarize(outcomes, tolerance=Tolerance())


def test_percentiles_are_values_that_were_measured() -> None:
    ranked = [float(number) for number in range(1, 101)]
    assert [percentile(ranked, percent) for percent in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert percentile([3.0], 50) == percentile([3.0], 99) == 3
    assert Figures.of([4.0, 1.0, 2.0, 3.0]) == Figures(4, 2.0, 4.0, 4.0, 4.0)


def test_a_run_that_started_in_time_is_valid() -> None:
    assert summary_of(*[outcome(slip_s=0.049)] * 1000, outcome(slip_s=0.249))["invalid"] == []


@pytest.mark.parametrize(
    ("slips", "named"),
    [([0.051] * 2 + [0.0] * 98, "p99 51 ms"), ([0.0] * 999 + [0.251], "longest 251 ms"), ([None, 0.0], "1 of 2")],
)
def test_a_run_whose_starts_slipped_is_invalid(slips: list[float | None], named: str) -> None:
    summary = summary_of(*[outcome(slip_s=slip_s) for slip_s in slips])
    (reason,) = summary["invalid"]
    assert named in reason
    assert f"INVALID: {reason}" in table(summary)


def test_a_run_without_requests_is_invalid() -> None:
    assert summary_of()["invalid"]


def test_latencies_of_accepted_and_refused_are_apart() -> None:
    summary = summary_of(made(answered_s=0.5), refused(answered_s=0.01), refused(answered_s=0.03, code="queue_full"))
    assert summary["seconds"]["post, accepted"]["longest"] == 0.5
    assert summary["seconds"]["post, refused"] == {"count": 2, "p50": 0.01, "p90": 0.03, "p99": 0.03, "longest": 0.03}
    assert summary["refused"] == {"no_capacity": 1, "queue_full": 1}
    assert (summary["offered"], summary["accepted"]) == (3, 1)


def test_a_promise_counts_from_admission_by_the_clock_of_the_service() -> None:
    assert made(ended_s=17.0, took_s=9.9).is_promise_kept
    assert made(took_s=10.1).is_promise_kept is False
    assert made(ending="failed").is_promise_kept is False
    for unknown in ("promise_s", "took_s", "ending"):
        assert made(**{unknown: None}).is_promise_kept is None


def test_goodput_counts_what_was_made_in_time_over_the_whole_run() -> None:
    too_late, bulk = made(10.0, ended_s=10.5), made(12.0, ended_s=8.0, promise_s=None)
    summary = summary_of(made(), too_late, bulk, refused(1.0))
    assert summary["promises"] == {"decided": 2, "kept": 1, "rate": 0.5}
    assert (summary["good"], summary["lasted_s"], summary["good_per_s"]) == (2, 20.5, 2 / 20.5)
    assert summary["good_of_offered"] == 0.5


def test_playback_counts_streams_read_to_their_end() -> None:
    smooth, stalled = Playback(1.0, 4, 1.92, 0, 0.0), Playback(1.0, 4, 1.92, 2, 0.5)
    half_read = made(playback=Playback(1.0, 1, 0.48, 0, 0.0))
    summary = summary_of(made(playback=smooth, is_cut=False), made(playback=stalled, is_cut=True), half_read)
    assert summary["playback"] == {
        "played": 2,
        "cut": 1,
        "media_s": 3.84,
        "stalled_videos": 1,
        "stalls": 2,
        "stalled_s": 0.5,
    }


def test_what_was_not_measured_is_not_reported() -> None:
    summary = summary_of(refused())
    assert set(summary["seconds"]) == {"slip", "post, refused", "retry-after"}
    assert "promises" not in summary
    assert summary["playback"] == {}
    assert not any(word in table(summary) for word in ("playback", "promises", "first block", "nan", "None"))


def test_a_line_per_request_holds_what_is_known() -> None:
    line = json.loads(to_json(refused()))
    assert line == {
        "at_s": 0.0,
        "priority": "standard",
        "size": "64x64",
        "num_clip": 1,
        "reader": "play",
        "slip_s": 0.001,
        "status": 503,
        "answered_s": 0.01,
        "refusal": "no_capacity",
        "retry_after_s": 7.0,
        "num_bytes": 0,
        "is_good": False,
    }
