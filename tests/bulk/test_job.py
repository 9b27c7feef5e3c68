"""The driver as far as it needs no lanes: what it checks, skips, refuses, and what it leaves when it cannot go on."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ray_cluster.errors import GangAbandonedError
from serve_app.bulk import job as job_module
from serve_app.bulk.job import BulkJob, ExitCode, run, validate
from serve_app.bulk.lock import ask_to_cancel
from serve_app.bulk.manifests.reading import find_manifest
from serve_app.bulk.output import read_result
from serve_app.bulk.reports import Reports
from serve_app.bulk.row import BadRow
from serve_app.errors import AvatarError, CheckpointError, InvalidRequestError
from serve_app.jobs.admission import Fits
from serve_app.schemas.bulk import BulkConfig
from serve_app.storage.base import Folder
from serve_app.storage.local_folder import LocalFolder
from tests.bulk.folders import names_in
from tests.bulk.jobs import LIMITS, Listener, NoLanes, a_job, a_row, commit, ran, told
from tests.bulk.rows import write_portrait, write_voice


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_portrait(tmp_path / "me.png")
    write_voice(tmp_path / "voice.wav")
    return tmp_path


def test_validating_plans_and_writes_nothing(folder: Path) -> None:
    bad = list[BadRow]()
    plan = validate(a_job(folder, a_row("a"), a_row("b", prompt=" "), a_row("A")), on_bad=bad.append)
    assert (plan["rows"], plan["good"], plan["bad"]) == (3, 1, {"PROMPT_INVALID": 1, "DUPLICATE_ID": 1})
    assert [row.number for row in bad] == [2, 3]
    assert not (folder / "out").exists()


def test_a_manifest_of_bad_rows_alone_needs_no_lanes(folder: Path) -> None:
    lanes = NoLanes()
    code, summary = ran(a_job(folder, a_row("a", image="nowhere.png"), a_row("b", prompt="")), lanes=lanes)
    assert (code, lanes.is_open) == (ExitCode.PARTIAL, False)
    assert summary["errors_by_code"] == {"INPUT_MISSING": 1, "PROMPT_INVALID": 1}
    assert [row["custom_id"] for row in told(folder, "errors.jsonl")] == ["a", "b"]
    assert told(folder, "summary.json") == told(folder, "progress.json") == summary
    assert told(folder, "run.json")["state"] == "ended"


def test_a_job_that_wants_every_row_good_renders_none(folder: Path) -> None:
    lanes = NoLanes()
    code, summary = ran(a_job(folder, a_row("a"), a_row("b", prompt=""), aborts_on_invalid=True), lanes=lanes)
    assert (code, lanes.is_open) == (ExitCode.BAD_MANIFEST, False)
    assert (summary["rows"]["failed"], summary["rows"]["waiting"]) == (1, 1)


def test_rows_that_are_done_are_told_and_not_made_again(folder: Path) -> None:
    job = a_job(folder, a_row("a"), a_row("b", seed=1))
    commit(folder, job)
    code, summary = ran(job)
    assert code is ExitCode.ALL_GOOD
    assert (summary["rows"]["skipped"], summary["rows"]["done"], summary["attempts"]) == (2, 0, 0)
    assert [row["custom_id"] for row in told(folder, "output.jsonl")] == ["a", "b"]


def test_rows_that_are_done_and_bad_ones_are_a_job_that_is_not_all_good(folder: Path) -> None:
    job = a_job(folder, a_row("a"), a_row("b", prompt=" "))
    commit(folder, job)
    assert ran(job)[0] is ExitCode.PARTIAL


def test_rows_that_were_made_otherwise_are_made_again(folder: Path) -> None:
    job = a_job(folder, a_row("a"))
    commit(folder, job, model="another")
    with pytest.raises(AssertionError, match="nothing to render"):
        ran(job)


def test_an_archive_that_is_asked_for_later_is_made_of_what_is_there(folder: Path) -> None:
    commit(folder, a_job(folder, a_row("a"), a_row("b", seed=1)))
    job = a_job(folder, a_row("a"), a_row("b", seed=1), name="{number:02}-{custom_id}")
    assert ran(job)[0] is ExitCode.ALL_GOOD
    assert [name for name in names_in(folder / "out") if name.startswith("videos/")] == [
        "videos/01-a.mp4",
        "videos/02-b.mp4",
    ]
    assert (folder / "out" / "videos" / "01-a.mp4").read_bytes() == b"the video of a"


def test_what_is_done_is_looked_for_by_several_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = a_job(folder, *(a_row(f"row-{number}", seed=number) for number in range(8)))
    commit(folder, job)
    together, really = threading.Barrier(LIMITS.check_threads, timeout=30), read_result

    def meet(output: Folder, custom_id: str) -> Any:
        together.wait()
        return really(output, custom_id)

    monkeypatch.setattr(job_module, "read_result", meet)
    assert ran(job)[1]["rows"]["skipped"] == 8


def test_a_job_can_be_stopped_while_it_looks_for_what_is_done_and_tells_how_far_it_is(folder: Path) -> None:
    job = a_job(folder, *(a_row(f"row-{number}", seed=number) for number in range(40)))
    commit(folder, job)
    lanes, listener, looks = NoLanes(), Listener(), iter(range(100))
    code, summary = ran(job, lanes=lanes, listener=listener, is_stopped=lambda: lanes.is_open and next(looks) >= 30)
    assert code is ExitCode.CANCELLED
    assert (summary["rows"]["skipped"], summary["rows"]["waiting"]) == (30, 10)
    told_skipped = [state["rows"]["skipped"] for state in listener.states if state["state"] == "checking"]
    assert 0 in told_skipped
    assert max(told_skipped) > 0


def archived(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out" / "videos").iterdir())}


def test_names_that_rows_exchange_have_the_right_videos(folder: Path) -> None:
    rows = [a_row("a"), a_row("b", seed=1)]
    commit(folder, a_job(folder, *rows))
    ran(a_job(folder, *rows, name="{number:02}"))
    assert archived(folder) == {"01.mp4": b"the video of a", "02.mp4": b"the video of b"}
    code, summary = ran(a_job(folder, *reversed(rows), name="{number:02}"))
    assert (code, summary["rows"]["skipped"]) == (ExitCode.ALL_GOOD, 2)
    assert archived(folder) == {"01.mp4": b"the video of b", "02.mp4": b"the video of a"}


def test_a_video_that_was_replaced_without_an_archive_is_replaced_there_by_the_next_run_with_one(folder: Path) -> None:
    job = a_job(folder, a_row("a"), name="{custom_id}")
    commit(folder, job)
    ran(job)
    newer = folder / "newer.mp4"
    newer.write_bytes(b"a newer video.")
    newer.replace(folder / "out" / "a" / "video.mp4")
    assert ran(job)[0] is ExitCode.ALL_GOOD
    assert archived(folder) == {"a.mp4": b"a newer video."}


def test_a_row_whose_video_somebody_removed_goes_to_a_lane_that_says_so(folder: Path) -> None:
    job = a_job(folder, a_row("a"), name="{custom_id}")
    commit(folder, job)
    (folder / "out" / "a" / "video.mp4").unlink()
    with pytest.raises(AssertionError, match="nothing to render"):
        ran(job)


def test_a_job_can_be_stopped_while_it_checks_its_manifest(folder: Path) -> None:
    rows = [a_row(f"row-{number}") for number in range(50)]
    lanes, looks = NoLanes(), iter(range(100))
    code, summary = ran(a_job(folder, *rows), lanes=lanes, is_stopped=lambda: next(looks) >= 7)
    assert (code, lanes.is_open) == (ExitCode.CANCELLED, False)
    assert (summary["rows"]["total"], summary["rows"]["waiting"]) == (7, 7)


def test_it_is_told_how_far_the_checks_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[tuple[str, int]] = []
    really = Reports.progress

    def progress(self: Reports, state: Any) -> None:
        states.append((state["state"], state["rows"]["total"]))
        really(self, state)

    monkeypatch.setattr(Reports, "progress", progress)
    ran(a_job(folder, *(a_row(f"row-{number}", prompt="") for number in range(40))))
    assert states[0] == ("checking", 0)
    assert states[-2][0] == "checking"
    assert states[-2][1] > 0
    assert states[-1] == ("partial", 40)


def test_a_job_that_is_cancelled_while_its_groups_wait_for_a_place_ends_in_good_order(folder: Path) -> None:
    @contextmanager
    def open_lanes(_: str, is_stopped: Callable[[], bool]) -> Iterator[NoLanes]:
        assert ask_to_cancel(LocalFolder(folder / "out"))
        while not is_stopped():
            time.sleep(0.001)
        raise GangAbandonedError("the placement is no longer wanted", remedy="start the group again")
        yield

    code, summary = run(a_job(folder, a_row("a")), open_lanes, listener=Listener(), is_stopped=lambda: False)
    assert (code, summary["rows"]["waiting"]) == (ExitCode.CANCELLED, 1)
    assert told(folder, "summary.json") == told(folder, "progress.json") == summary


def test_a_run_takes_back_what_the_one_before_told_of_its_end(folder: Path) -> None:
    job = a_job(folder, a_row("a"))
    commit(folder, job)
    ran(job)
    assert told(folder, "summary.json")["state"] == "all_good"
    with pytest.raises(CheckpointError):
        ran(job, lanes=NoLanes(error=CheckpointError("there is none", remedy="name one")))
    assert not (folder / "out" / "summary.json").exists()


def test_it_is_told_at_once_that_another_run_began(folder: Path) -> None:
    job, states = a_job(folder, a_row("a", prompt=" ")), []
    ran(job)

    def look() -> bool:
        states.append(told(folder, "progress.json")["state"])
        return True

    ran(job, is_stopped=look)
    assert states[0] == "checking"


def test_a_job_that_cannot_go_on_says_why(folder: Path) -> None:
    lanes = NoLanes(error=CheckpointError("there is none", remedy="name one"))
    with pytest.raises(CheckpointError):
        ran(a_job(folder, a_row("a")), lanes=lanes)
    progress = told(folder, "progress.json")
    assert (progress["state"], progress["error"]) == ("failed", "there is none; name one")
    assert told(folder, "run.json")["state"] == "ended"


@pytest.mark.parametrize("name", ["errors.jsonl", "output.jsonl"])
def test_a_report_in_its_own_folder_is_no_manifest_and_stays_as_it_is(folder: Path, name: str) -> None:
    job = a_job(folder, a_row("a"), manifest=f"out/{name}")
    with pytest.raises(InvalidRequestError, match="run the manifest of before"):
        ran(job)
    assert told(folder, name) == [a_row("a")]
    assert names_in(folder / "out") == [name]


def test_the_errors_of_a_run_are_a_manifest_for_another_folder(folder: Path) -> None:
    ran(a_job(folder, a_row("a", image="later.png"), a_row("b", prompt=" ")))
    write_portrait(folder / "later.png")
    again = BulkJob(
        source=find_manifest(str(folder / "out" / "errors.jsonl")),
        output=str(folder / "again"),
        config=BulkConfig(limits=LIMITS),
        judge=lambda _: Fits(1.0),
        num_groups=1,
    )
    plan = validate(again, on_bad=lambda _: None)
    assert (plan["good"], plan["bad"]) == (1, {"PROMPT_INVALID": 1})


def test_what_a_killed_run_left_half_written_is_removed(folder: Path) -> None:
    left = folder / "out" / "a" / f".{'0' * 16}.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    ran(a_job(folder, a_row("a", prompt="")))
    assert not left.exists()


def test_a_second_job_is_refused_while_one_works(folder: Path) -> None:
    refused: list[str] = []
    job = a_job(folder, a_row("a"))

    def meanwhile() -> bool:
        with pytest.raises(InvalidRequestError, match="is used by another job") as error:
            ran(job)
        refused.append(str(error.value))
        return True

    assert ran(job, is_stopped=meanwhile)[0] is ExitCode.CANCELLED
    assert refused


def test_a_job_whose_folder_was_taken_over_stops_and_leaves_the_reports_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, really, run_json = threading.Event(), Reports.let_go, folder / "out" / "run.json"

    def let_go(reports: Reports) -> None:
        really(reports)
        lost.set()

    def take_over() -> bool:
        if not lost.is_set():
            run_json.write_text(json.dumps({"run_id": "another", "host": "elsewhere", "state": "running"}))
            assert lost.wait(30)
        return False

    monkeypatch.setattr(Reports, "let_go", let_go)
    with pytest.raises(AvatarError, match="was taken over by another job, another on elsewhere"):
        ran(a_job(folder, a_row("a", prompt="")), is_stopped=take_over)
    assert told(folder, "errors.jsonl") == []
    assert not (folder / "out" / "summary.json").exists()
    assert json.loads(run_json.read_text())["run_id"] == "another"
