"""The client against a stand-in of the service."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from load_tests import open_loop
from load_tests.arrivals import Arrival, Mix, Pattern, draw_schedule
from load_tests.client import Limits, Outcome, play
from tests.load_tests.standin import StandIn, served

ARRIVAL = Arrival(0.0, "standard", "64x64", 1)
LIMITS = Limits(answer_s=20, quiet_s=20, finish_s=20)


def outcomes_of(standin: StandIn, *arrivals: Arrival, limits: Limits = LIMITS) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with served(standin) as url:
        asyncio.run(play(url, arrivals, limits=limits, on_outcome=outcomes.append))
    return sorted(outcomes, key=lambda outcome: outcome.arrival.at_s)


def test_a_request_is_followed_from_its_form_to_its_last_frame() -> None:
    standin = StandIn(block_s=0.02)
    (outcome,) = outcomes_of(standin, replace(ARRIVAL, num_clip=2, deadline_s=30, priority="interactive"))
    (form,) = standin.forms
    assert {name: form[name] for name in ("size", "num_clip", "priority", "deadline_s")} == {
        "size": "64x64",
        "num_clip": "2",
        "priority": "interactive",
        "deadline_s": "30",
    }
    assert (outcome.status, outcome.ending, outcome.fault, outcome.is_cut) == (200, "completed", None, False)
    assert outcome.playback is not None
    assert outcome.playback.num_fragments == 8
    assert outcome.playback.media_s == pytest.approx(3.84)
    moments = (outcome.slip_s, outcome.answered_s, outcome.first_byte_s, outcome.first_block_s)
    assert None not in (*moments, outcome.ended_s)
    assert moments == tuple(sorted(moments))  # type: ignore[type-var]
    assert outcome.took_s == 10
    assert outcome.is_promise_kept


def test_files_may_be_sent_once_before_the_run() -> None:
    standin, outcomes = StandIn(), list[Outcome]()
    arrivals = [ARRIVAL, replace(ARRIVAL, num_clip=2), ARRIVAL]
    with served(standin) as url:
        asyncio.run(play(url, arrivals, limits=LIMITS, on_outcome=outcomes.append, uploads_once=True))
    assert standin.uploads == ["voice.wav", "voice.wav", "portrait.png"]
    assert [form["audio_reference"] for form in standin.forms] == [str({"file_id": f"file_{n}"}) for n in (1, 2, 1)]
    assert [outcome.ending for outcome in outcomes] == ["completed"] * 3


def test_a_broken_promise_is_seen() -> None:
    (outcome,) = outcomes_of(StandIn(promise_s=5.5), ARRIVAL)
    assert (outcome.took_s, outcome.ending, outcome.is_good) == (6, "completed", False)


def test_a_slow_stream_stalls_its_player() -> None:
    (outcome,) = outcomes_of(StandIn(block_s=0.6), ARRIVAL)
    assert outcome.playback is not None
    assert outcome.playback.num_stalls >= 1
    assert outcome.playback.stalled_s > 0.1


def test_a_refusal_is_told_with_reason_and_retry_after() -> None:
    (outcome,) = outcomes_of(StandIn(capacity=0), ARRIVAL)
    assert (outcome.status, outcome.refusal, outcome.retry_after_s) == (503, "no_capacity", 7.0)
    assert not outcome.is_accepted


def test_requests_start_in_time_whatever_earlier_ones_do() -> None:
    arrivals = draw_schedule(Pattern(shape="uniform", rate=20, duration_s=1), Mix(readers={"none": 1}), seed="0")
    outcomes = outcomes_of(StandIn(block_s=0.5), *arrivals)
    assert len(outcomes) == 20
    last_start = arrivals[-1].at_s + max(outcome.slip_s or 0 for outcome in outcomes)
    assert all(outcome.ended_s is not None and outcome.ended_s > last_start for outcome in outcomes[:5])


def test_events_that_break_off_are_resumed_behind_the_last_one() -> None:
    standin = StandIn(break_after=3)
    (outcome,) = outcomes_of(standin, ARRIVAL)
    assert standin.resumed_behind == ["0", "3"]
    assert outcome.ending == "completed"


def test_a_reader_that_comes_too_early_asks_again() -> None:
    (outcome,) = outcomes_of(StandIn(not_ready=2), ARRIVAL)
    assert (outcome.ending, outcome.fault, outcome.is_cut) == ("completed", None, False)


def test_a_reader_that_stops_does_not_end_the_video() -> None:
    (outcome,) = outcomes_of(StandIn(block_s=0.02), replace(ARRIVAL, num_clip=5, reader="stop"))
    assert (outcome.ending, outcome.fault, outcome.is_cut) == ("completed", None, None)
    assert outcome.playback is not None
    assert 1 <= outcome.playback.num_fragments < 20


def test_a_failed_video_is_told_with_its_code() -> None:
    (outcome,) = outcomes_of(StandIn(ending="failed"), ARRIVAL)
    assert (outcome.ending, outcome.failure, outcome.is_good) == ("failed", "over_budget", False)


def test_a_video_that_does_not_end_is_given_up() -> None:
    (outcome,) = outcomes_of(StandIn(block_s=30), ARRIVAL, limits=replace(LIMITS, finish_s=0.5, tail_s=0.1))
    assert (outcome.ending, outcome.fault) == (None, "unfinished")


def test_requests_beyond_what_this_process_takes_on_are_not_sent() -> None:
    standin = StandIn(block_s=0.1)
    outcomes = outcomes_of(standin, *[ARRIVAL] * 3, limits=replace(LIMITS, max_in_flight=2))
    assert sorted(str(outcome.fault) for outcome in outcomes) == ["None", "None", "not_sent"]
    assert len(standin.forms) == 2


def test_a_service_that_is_not_there_is_a_fault_of_every_request() -> None:
    outcomes: list[Outcome] = []
    asyncio.run(play("http://127.0.0.1:9", [ARRIVAL], limits=LIMITS, on_outcome=outcomes.append))
    assert [outcome.fault for outcome in outcomes] == ["post: ConnectError"]


def test_the_command_reports_a_run_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows, trace = tmp_path / "outcomes.jsonl", tmp_path / "trace.jsonl"
    flags = ["--rate", "20", "--duration", "1", "--shape", "uniform", "--json", "--slip-p99-ms", "5000"]
    with served(StandIn()) as url:
        arguments = ["--host", url, "--slip-most-ms", "5000", f"--outcomes={rows}", f"--write-trace={trace}"]
        assert open_loop.main([*flags, *arguments]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["offered"], summary["ended"], summary["invalid"]) == (20, {"completed": 20}, [])
    assert len(rows.read_text().splitlines()) == len(trace.read_text().splitlines()) == 20


def test_the_command_says_that_a_late_run_is_invalid_and_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    with served(StandIn()) as url:
        code = open_loop.main(["--host", url, "--rate=5", "--duration=1", "--seed=2", "--slip-p99-ms=0.0001"])
    assert code == 1
    assert "INVALID: requests started late" in capsys.readouterr().out


def test_flags_that_a_trace_makes_useless_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        open_loop.main(["--host", "http://any", "--trace", "some.jsonl", "--rate", "3"])
    assert "does not go with rate" in capsys.readouterr().err
