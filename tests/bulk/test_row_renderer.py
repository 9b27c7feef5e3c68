"""One source of frames, several rows: the ranks in turn, everything else at once, and every end is a report."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest

from serve_app.bulk.lanes import row_renderer
from serve_app.bulk.lanes.messages import RowReport
from serve_app.bulk.outcomes import Code
from serve_app.bulk.output import RowOutput
from serve_app.errors import StorageError
from serve_app.rendering import pipeline
from serve_app.rendering.frames import IsCancelled
from serve_app.storage.base import Folder
from serve_app.task import FrameBlock, RenderTask
from tests.bulk.folders import Bucket, FrailFolder, names_in
from tests.bulk.lanes import WAIT_S, Clock, Failing, GatedSource, renderer
from tests.bulk.rows import order, write_portrait
from tests.rendering.fakes import DrawnSource


@pytest.fixture
def out(tmp_path: Path) -> FrailFolder:
    return FrailFolder(tmp_path / "out")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(row_renderer, "time", clock)
    return clock


def log_of(tmp_path: Path, custom_id: str = "row", *, attempt: int = 1) -> str:
    return (tmp_path / "out" / custom_id / f"attempt_{attempt}.log").read_text()


def stored_result(tmp_path: Path, custom_id: str = "row") -> Any:
    return json.loads((tmp_path / "out" / custom_id / "result.json").read_text())


def test_a_row_becomes_a_video_a_result_and_a_log(out: Folder, tmp_path: Path) -> None:
    wanted = order(tmp_path, metadata={"campaign": "spring"}, warnings=("small",), attempt=2)
    report = renderer(out, tmp_path, DrawnSource()).render(wanted)
    assert (report.seq, report.attempt, report.lane) == (1, 2, "group-0")
    assert (report.error, report.is_begun, report.has_brought_down) == (None, True, False)
    result = stored_result(tmp_path)
    assert report.result == result
    assert (result["custom_id"], result["row_key"], result["attempts"]) == ("row", "k1", 2)
    assert (result["group"], result["run_id"]) == ("group-0", "r1")
    assert (result["num_frames"], result["seconds"], result["size"]) == (30, 1.2, "64x64")
    assert (result["metadata"], result["warnings"]) == ({"campaign": "spring"}, ["small"])
    assert result["gpu_s"] == pytest.approx(4 * report.busy_s, abs=0.001)
    video = tmp_path / "out" / "row" / "video.mp4"
    assert (result["uri"], result["num_bytes"]) == (str(video), video.stat().st_size)
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 30
    assert names_in(tmp_path / "out") == ["row/attempt_2.log", "row/result.json", "row/video.mp4"]
    log = log_of(tmp_path, attempt=2)
    for line in ("row, attempt 2 of run r1 on group-0", "has its inputs", "has the ranks", "block 3 of 3", "is done"):
        assert line in log


def test_the_same_row_is_not_rendered_again(out: Folder, tmp_path: Path) -> None:
    source = DrawnSource()
    lane = renderer(out, tmp_path, source)
    first = lane.render(order(tmp_path))
    again = lane.render(order(tmp_path, attempt=2))
    assert len(source.tasks) == 1
    assert again.result == first.result
    assert again.busy_s == 0


def test_a_row_that_changed_is_rendered_in_place_of_the_old_one(out: Folder, tmp_path: Path) -> None:
    source = DrawnSource()
    lane = renderer(out, tmp_path, source)
    lane.render(order(tmp_path))
    lane.render(order(tmp_path, row_key="k2", spec={"seed": 1}))
    assert len(source.tasks) == 2
    assert stored_result(tmp_path)["row_key"] == "k2"


def test_a_row_that_changed_and_fails_has_no_result_of_the_old_one(out: Folder, tmp_path: Path) -> None:
    renderer(out, tmp_path, DrawnSource()).render(order(tmp_path))
    renderer(out, tmp_path, Failing()).render(order(tmp_path, row_key="k2"))
    assert names_in(tmp_path / "out") == ["row/attempt_1.log", "row/video.mp4"]


def test_a_video_without_a_result_is_made_again(out: Folder, tmp_path: Path) -> None:
    out.write("row/video.mp4", b"of a run that was killed before it committed")
    report = renderer(out, tmp_path, DrawnSource()).render(order(tmp_path))
    assert report.result is not None
    assert (tmp_path / "out" / "row" / "video.mp4").stat().st_size == report.result["num_bytes"]


def test_the_result_of_another_driver_counts_when_it_was_first(out: FrailFolder, tmp_path: Path) -> None:
    source = GatedSource(waits_at=2)
    with ThreadPoolExecutor() as pool:
        making = pool.submit(renderer(out, tmp_path, source).render, order(tmp_path))
        assert source.reached.wait(WAIT_S)
        first = renderer(out, tmp_path, DrawnSource()).render(order(tmp_path, attempt=2))
        source.goes_on.set()
        report = making.result(WAIT_S)
    assert report.result == first.result == stored_result(tmp_path)
    assert first.result is not None
    assert first.result["attempts"] == 2


def test_an_input_that_changed_since_it_was_checked_is_not_rendered(out: FrailFolder, tmp_path: Path) -> None:
    wanted, source = order(tmp_path), DrawnSource()
    write_portrait(tmp_path / "me.png", grey=7)
    report = renderer(out, tmp_path, source).render(wanted)
    assert report.error is not None
    assert (report.error.code, report.error.stage) == (Code.ROW_INVALID, "inputs")
    assert "has changed since the rows were checked" in report.error.message
    assert source.tasks == []


class Reading:
    """Tells when the inputs of a spec are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
        self.is_done, self._of, self._really = threading.Event(), of, pipeline.read_inputs
        monkeypatch.setattr(pipeline, "read_inputs", self._read)

    def _read(self, spec: Any, **given: Any) -> Any:
        found = self._really(spec, **given)
        if spec.prompt == self._of:
            self.is_done.set()
        return found


def test_the_next_row_s_inputs_are_read_while_the_first_has_the_ranks(
    out: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, reading = GatedSource(waits_at=1), Reading(monkeypatch, "The second.")
    lane = renderer(out, tmp_path, source)
    orders = order(tmp_path, "a"), order(tmp_path, "b", seq=2, spec={"prompt": "The second."})
    with ThreadPoolExecutor() as pool:
        first = pool.submit(lane.render, orders[0])
        assert source.reached.wait(WAIT_S)
        second = pool.submit(lane.render, orders[1])
        assert reading.is_done.wait(WAIT_S)
        assert [task.prompt for task in source.tasks] == [orders[0].spec["prompt"]]
        assert lane.now is not None
        assert (lane.now.order.custom_id, lane.now.blocks_done, lane.now.num_blocks) == ("a", 1, 3)
        source.goes_on.set()
        reports = first.result(WAIT_S), second.result(WAIT_S)
    assert [report.result is not None for report in reports] == [True, True]
    assert [task.prompt for task in source.tasks] == [wanted.spec["prompt"] for wanted in orders]
    assert lane.now is None


@dataclass
class LonelySource(DrawnSource):
    """Remembers how many rows had the ranks at once."""

    num_now: int = 0
    most: int = 0

    def frames(self, task: RenderTask, *, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        self.num_now += 1
        self.most = max(self.most, self.num_now)
        yield from super().frames(task, is_cancelled=is_cancelled)
        self.num_now -= 1


def test_only_one_row_has_the_ranks(out: Folder, tmp_path: Path) -> None:
    source = LonelySource()
    lane = renderer(out, tmp_path, source)
    orders = [order(tmp_path, f"row-{number}", seq=number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        reports = list(pool.map(lane.render, orders))
    assert [report.seq for report in reports] == list(range(6))
    assert all(report.result is not None for report in reports)
    assert (source.most, len(source.tasks)) == (1, 6)


def test_a_row_is_in_the_archive_before_it_counts_as_done(
    out: FrailFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archived: list[bool] = []
    really = RowOutput.commit

    def commit(output: RowOutput, result: Any) -> Any:
        archived.append(output.is_archived("Spring"))
        return really(output, result)

    monkeypatch.setattr(RowOutput, "commit", commit)
    renderer(out, tmp_path, DrawnSource()).render(order(tmp_path, archive_name="Spring"))
    assert archived == [True]
    assert (tmp_path / "out" / "videos" / "Spring.mp4").samefile(tmp_path / "out" / "row" / "video.mp4")


def test_a_row_that_is_done_gets_into_the_archive_too(out: Folder, tmp_path: Path) -> None:
    lane = renderer(out, tmp_path, DrawnSource())
    lane.render(order(tmp_path))
    lane.render(order(tmp_path, attempt=2, archive_name="Spring"))
    assert "videos/Spring.mp4" in names_in(tmp_path / "out")


@dataclass
class Busy:
    """Fails the first times that it is asked."""

    times: int = 2

    def __call__(self, act: Any) -> Any:
        def acts(*given: Any, **named: Any) -> Any:
            self.times -= 1
            if self.times >= 0:
                raise StorageError("the bucket is busy", remedy="try again later")
            return act(*given, **named)

        return acts


@pytest.mark.parametrize("act", ["put", "copy", "write_if"])
def test_a_bucket_that_is_away_for_a_while_costs_no_render(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    bucket, source = Bucket(tmp_path / "bucket"), DrawnSource()
    monkeypatch.setattr(row_renderer, "_ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(bucket, act, Busy()(getattr(bucket, act)))
    report = renderer(bucket, tmp_path, source).render(order(tmp_path, archive_name="Spring"))
    assert report.result is not None
    assert len(source.tasks) == 1
    assert names_in(tmp_path / "bucket")[1:] == ["row/result.json", "row/video.mp4", "videos/Spring.mp4"]
    assert names_in(tmp_path / "spool") == []
    assert (tmp_path / "bucket" / "row" / "attempt_1.log").read_text().count("is not taken yet") == 2


def test_who_is_stopped_does_not_wait_for_a_bucket(tmp_path: Path) -> None:
    bucket, source = Bucket(tmp_path / "bucket"), DrawnSource()
    bucket.broken = frozenset(["put"])
    lane = renderer(bucket, tmp_path, source)
    with ThreadPoolExecutor() as pool:
        making = pool.submit(lane.render, order(tmp_path))
        lane.stop()
        report = making.result(WAIT_S)
    assert report.error is not None
    assert names_in(tmp_path / "spool") == []


def test_a_bucket_gets_the_video_and_then_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_renderer, "_PATIENT_S", 0.0)
    bucket = Bucket(tmp_path / "bucket")
    bucket.broken = frozenset(["put"])
    lane = renderer(bucket, tmp_path, DrawnSource())
    report = lane.render(order(tmp_path))
    assert report.error is not None
    assert (report.error.code, names_in(tmp_path / "bucket")) == (Code.UPLOAD_FAILED, ["row/attempt_1.log"])
    bucket.broken = frozenset()
    report = lane.render(order(tmp_path, attempt=2))
    assert report.result is not None
    assert report.result["uri"] == "s3://bucket/row/video.mp4"
    assert names_in(tmp_path / "bucket")[-2:] == ["row/result.json", "row/video.mp4"]
    assert names_in(tmp_path / "spool") == []


def test_the_time_of_the_ranks_is_told_while_they_work(out: Folder, tmp_path: Path, clock: Clock) -> None:
    source = GatedSource(waits_at=1)
    lane = renderer(out, tmp_path, source)
    with ThreadPoolExecutor() as pool:
        making: Future[RowReport] = pool.submit(lane.render, order(tmp_path, limit_s=1e9))
        assert source.reached.wait(WAIT_S)
        clock.now += 7
        assert lane.busy_s == 7.0
        source.goes_on.set()
        assert making.result(WAIT_S).busy_s == 7.0
    assert lane.busy_s == 7.0
