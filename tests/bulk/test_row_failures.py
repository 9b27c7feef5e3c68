"""A row that fails, is stopped or takes too long is a report, and leaves the ranks to the next one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ray_cluster.errors import FailureKind, GroupUnavailableError, RankFailedError
from serve_app.bulk import inputs
from serve_app.bulk.lanes import row_renderer
from serve_app.bulk.lanes.row_renderer import RowRenderer
from serve_app.bulk.outcomes import Code
from serve_app.errors import NotFiniteError, OutputError
from serve_app.rendering.frames import IsCancelled
from serve_app.storage.base import Folder
from tests.bulk.folders import Bucket, FrailFolder, names_in
from tests.bulk.lanes import WAIT_S, Clock, Failing, GatedSource, SlowSource, raise_as_the_gang_does, renderer
from tests.bulk.rows import order
from tests.rendering.fakes import DrawnSource


@pytest.fixture
def out(tmp_path: Path) -> FrailFolder:
    return FrailFolder(tmp_path / "out")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(row_renderer, "time", clock)
    return clock


def log_of(tmp_path: Path, custom_id: str = "row") -> str:
    return (tmp_path / "out" / custom_id / "attempt_1.log").read_text()


def test_a_row_that_takes_too_long_is_stopped_at_a_block(out: Folder, tmp_path: Path, clock: Clock) -> None:
    report = renderer(out, tmp_path, SlowSource(clock=clock)).render(order(tmp_path, limit_s=15.0))
    assert report.error is not None
    assert (report.error.code, report.error.is_retryable) == (Code.TIMEOUT, True)
    assert "took longer than 15 s" in report.error.message
    assert (report.error.blocks_done, report.busy_s) == (2, 20.0)
    assert names_in(tmp_path / "out") == ["row/attempt_1.log"]


def test_ranks_that_are_started_anew_are_no_time_of_the_row(out: Folder, tmp_path: Path, clock: Clock) -> None:
    lane: list[RowRenderer] = []

    def wait(is_cancelled: IsCancelled) -> None:
        clock.now += 10_000
        assert not is_cancelled()
        assert (lane[0].now, lane[0].busy_s) == (None, 0.0)

    lane.append(renderer(out, tmp_path, SlowSource(clock=clock), wait_ready=wait))
    report = lane[0].render(order(tmp_path, limit_s=60.0))
    assert report.error is None
    assert (report.busy_s, lane[0].busy_s) == (30.0, 30.0)


def test_ranks_that_do_not_come_back_are_no_attempt(out: Folder, tmp_path: Path) -> None:
    def wait(_: IsCancelled) -> None:
        raise_as_the_gang_does(GroupUnavailableError("group-0 is not ready", remedy="wait"))

    source = DrawnSource()
    report = renderer(out, tmp_path, source, wait_ready=wait).render(order(tmp_path))
    assert report.error is not None
    assert (report.error.code, report.is_begun, report.busy_s) == (Code.NODE_LOST, False, 0.0)
    assert source.tasks == []


def test_a_stop_ends_what_runs_what_waits_and_what_comes(out: Folder, tmp_path: Path) -> None:
    source = GatedSource(waits_at=1)
    lane = renderer(out, tmp_path, source)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(lane.render, order(tmp_path, "a"))
        assert source.reached.wait(WAIT_S)
        waiting = pool.submit(lane.render, order(tmp_path, "b", seq=2))
        lane.stop()
        source.goes_on.set()
        reports = [running.result(WAIT_S), waiting.result(WAIT_S), lane.render(order(tmp_path, "c", seq=3))]
    assert [report.error and report.error.code for report in reports] == [Code.CANCELLED] * 3
    assert "block 3" not in log_of(tmp_path, "a")
    assert all(name.endswith(".log") for name in names_in(tmp_path / "out"))


def failed_rank(kind: FailureKind, *, cause: Exception | None = None) -> RankFailedError:
    return RankFailedError(
        kind, rank=1, role="dit", detail="gone", remedy="see its log", cause=cause, traceback="Traceback of the rank"
    )


@pytest.mark.parametrize(
    ("error", "code", "brings_down"),
    [
        (lambda: ZeroDivisionError("a bug"), Code.INTERNAL, False),
        (lambda: failed_rank(FailureKind.DIED), Code.RANK_DIED, True),
        (lambda: failed_rank(FailureKind.NO_PROGRESS), Code.BLOCK_STALL, True),
        (lambda: failed_rank(FailureKind.EXCEPTION, cause=NotFiniteError("NaN", remedy="-")), Code.NAN_LATENT, True),
        (lambda: OutputError("the disk is full", remedy="make room"), Code.UPLOAD_FAILED, False),
    ],
)
def test_whatever_fails_is_a_report_and_leaves_the_ranks_to_the_next_row(
    out: Folder, tmp_path: Path, error: Callable[[], Exception], code: Code, brings_down: bool
) -> None:
    source = Failing(error=error())
    lane = renderer(out, tmp_path, source)
    report = lane.render(order(tmp_path))
    assert report.error is not None
    assert (report.error.code, report.error.blocks_done, report.has_brought_down) == (code, 1, brings_down)
    assert (report.error.group, report.error.attempt) == ("group-0", 1)
    assert report.error.log_uri == str(tmp_path / "out" / "row" / "attempt_1.log")
    assert names_in(tmp_path / "out") == ["row/attempt_1.log"]
    log = log_of(tmp_path)
    assert f"failed: {code}: " in log
    assert ("Traceback" in log) == (brings_down or code is Code.INTERNAL)
    assert ("Traceback of the rank" in log) == brings_down
    source.error = ZeroDivisionError()
    assert lane.render(order(tmp_path, "next", seq=2)).error is not None
    assert len(source.tasks) == 2


def test_an_input_that_went_since_it_was_checked_is_no_fault_of_the_ranks(out: Folder, tmp_path: Path) -> None:
    source, wanted = DrawnSource(), order(tmp_path)
    (tmp_path / "voice.wav").unlink()
    report = renderer(out, tmp_path, source).render(wanted)
    assert report.error is not None
    assert (report.error.code, report.error.stage, report.is_begun) == (Code.INPUT_MISSING, "inputs", True)
    assert source.tasks == []


def test_inputs_of_a_bucket_that_is_away_are_tried_again(
    out: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(tmp_path)
    monkeypatch.setattr(inputs, "_folder", lambda _: bucket)
    wanted = order(tmp_path, spec={"image": "s3://bucket/me.png", "audio": "s3://bucket/voice.wav"})
    bucket.broken = frozenset(["fetch"])
    report = renderer(out, tmp_path, DrawnSource()).render(wanted)
    assert report.error is not None
    assert (report.error.code, report.error.stage) == (Code.INPUT_UNREACHABLE, "inputs")
    assert report.error.is_retryable
    bucket.broken = frozenset()
    assert renderer(out, tmp_path, DrawnSource()).render(wanted).error is None


@pytest.mark.parametrize("broken", ["read", "delete", "write_if", "copy"])
def test_an_output_folder_that_is_away_is_told_as_that(out: FrailFolder, tmp_path: Path, broken: str) -> None:
    out.broken = frozenset([broken])
    report = renderer(out, tmp_path, DrawnSource()).render(order(tmp_path, archive_name="Spring"))
    assert report.error is not None
    assert (report.error.code, report.error.stage) == (Code.UPLOAD_FAILED, "upload")
    assert f"the disk is away: {broken}" in report.error.message
    out.broken = frozenset()
    assert out.read("row/result.json") is None
    assert renderer(out, tmp_path, DrawnSource()).render(order(tmp_path, attempt=2)).error is None


def test_a_log_that_cannot_be_written_does_not_fail_the_row(
    out: FrailFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out.broken = frozenset(["write"])
    report = renderer(out, tmp_path, DrawnSource()).render(order(tmp_path))
    assert report.result is not None
    assert [record.message for record in caplog.records] == ["row log not written"]
