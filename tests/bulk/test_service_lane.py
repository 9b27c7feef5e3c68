"""A lane of the serve pool: what the service makes gets into the output folder as if it were made here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk import inputs
from serve_app.bulk.lanes.messages import RowOrder
from serve_app.bulk.lanes.service import ServiceLane
from serve_app.bulk.lanes.service_client import ServiceModel
from serve_app.bulk.outcomes import Code
from serve_app.jobs.messages import GroupCondition
from serve_app.schemas.render import RenderSpec
from tests.bulk.folders import Bucket, names_in
from tests.bulk.rows import order
from tests.bulk.scripted_service import CONTENT, CREATE, FORGET, Answer, Service, a_video, refusal, served

VIDEO = bytes(range(256)) * 100
ABOUT = {"inference_time_s": 2.5, "size": "64x64", "num_frames": 30, "seconds": "1.2"}


@pytest.fixture
def service() -> Iterator[Service]:
    with served() as running:
        done = a_video("completed", progress=100)
        running.answers.update({CREATE: [Answer({**done.body, **ABOUT})], CONTENT: [Answer(VIDEO)]})
        running.answers[FORGET] = [Answer({})]
        yield running


@pytest.fixture
def lane(service: Service, tmp_path: Path) -> ServiceLane:
    running = ServiceModel(service.url, "live-avatar", 1)
    return ServiceLane("lane-0", running, str(tmp_path / "out"), "r1", tmp_path / "spools")


def row(folder: Path, **changes: Any) -> RowOrder:
    wanted = order(folder, **changes)
    return RowOrder(**{**vars(wanted), "spec": RenderSpec.from_request(**wanted.spec).model_dump(mode="json")})


def test_a_row_is_made_kept_and_forgotten_by_the_service(service: Service, lane: ServiceLane, tmp_path: Path) -> None:
    report = lane.render(row(tmp_path, metadata={"k": "v"}, archive_name="Spring"))
    assert report.error is None
    result = json.loads((tmp_path / "out" / "row" / "result.json").read_text())
    assert report.result == result
    assert (result["row_key"], result["num_frames"], result["seconds"], result["gpu_s"]) == ("k1", 30, 1.2, 2.5)
    assert (tmp_path / "out" / "row" / "video.mp4").read_bytes() == VIDEO
    assert names_in(tmp_path / "out") == [
        "row/attempt_1.log",
        "row/result.json",
        "row/video.mp4",
        "videos/Spring.mp4",
    ]
    assert (report.busy_s, service.asked(FORGET)) == (2.5, 1)
    log = (tmp_path / "out" / "row" / "attempt_1.log").read_text()
    for line in ("row, attempt 1 of run r1 on lane-0", service.url, "v1 there: completed, 2.5 s on a group", "is done"):
        assert line in log


def test_a_bucket_gets_the_video_over_a_spool_that_is_empty_afterwards_and_gone_in_the_end(
    lane: ServiceLane, tmp_path: Path
) -> None:
    bucket = Bucket(tmp_path / "bucket")
    lane._output = bucket
    bucket.broken = frozenset(["put"])
    assert lane.render(row(tmp_path)).error is not None
    bucket.broken = frozenset()
    assert lane.render(row(tmp_path, attempt=2)).result is not None
    assert (tmp_path / "bucket" / "row" / "video.mp4").read_bytes() == VIDEO
    (spool,) = (tmp_path / "spools").iterdir()
    assert names_in(spool) == []
    lane.close()
    assert not spool.exists()


def test_gpu_seconds_are_those_of_all_cards_of_a_group(service: Service, tmp_path: Path) -> None:
    running = ServiceModel(service.url, "live-avatar", 1, layout="stages=4,vae=1")
    lane = ServiceLane("lane-0", running, str(tmp_path / "out"), "r1", tmp_path / "spools")
    report = lane.render(row(tmp_path))
    assert report.result is not None
    assert (report.result["gpu_s"], report.result["render_s"], report.busy_s) == (12.5, 2.5, 2.5)


def test_an_order_that_comes_twice_is_answered_and_not_obeyed_again(
    service: Service, lane: ServiceLane, tmp_path: Path
) -> None:
    wanted = row(tmp_path)
    assert lane.render(wanted) == lane.render(wanted)
    assert service.asked(CREATE) == 1
    assert lane.status().orders == ((1, 1),)
    lane.forget(1, 1)
    assert lane.status().orders == ()


def test_a_row_that_is_done_is_not_asked_for(service: Service, lane: ServiceLane, tmp_path: Path) -> None:
    lane.render(row(tmp_path))
    again = lane.render(row(tmp_path, attempt=2, archive_name="Spring"))
    assert again.result is not None
    assert (service.asked(CREATE), again.busy_s) == (1, 0.0)
    assert "videos/Spring.mp4" in names_in(tmp_path / "out")


@pytest.mark.parametrize(
    ("create", "code", "lost_s"),
    [
        (refusal(422, "never_fits"), Code.NEVER_FITS, 0.0),
        (a_video("failed", error={"code": "gang_failed", "message": "rank 1 died"}), Code.RANK_DIED, 2.5),
        (a_video("cancelled"), Code.TIMEOUT, 2.5),
    ],
)
def test_what_the_service_does_not_make_has_its_code(
    service: Service, lane: ServiceLane, tmp_path: Path, create: Answer, code: Code, lost_s: float
) -> None:
    if create.status == 200:
        create = Answer({**create.body, **ABOUT})
    service.answers[CREATE] = [create]
    report = lane.render(row(tmp_path))
    assert report.error is not None
    assert (report.error.code, report.error.group, report.has_brought_down) == (code, "lane-0", False)
    assert report.busy_s == lost_s
    assert f"failed: {code}: {report.error.message}" in Path(report.error.log_uri).read_text()
    assert not (tmp_path / "out" / "row" / "result.json").exists()


def test_half_a_video_is_asked_for_again(service: Service, lane: ServiceLane, tmp_path: Path) -> None:
    service.answers[CONTENT] = [Answer(VIDEO, is_cut=True), Answer(VIDEO)]
    first = lane.render(row(tmp_path))
    assert first.error is not None
    assert (first.error.code, first.error.is_retryable, first.busy_s) == (Code.NODE_LOST, True, 0.0)
    assert names_in(tmp_path / "out") == ["row/attempt_1.log"]
    assert lane.render(row(tmp_path, attempt=2)).error is None


def test_inputs_and_outputs_that_are_away_are_told_apart(
    lane: ServiceLane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(tmp_path)
    bucket.broken = frozenset(["fetch", "read"])
    monkeypatch.setattr(inputs, "_folder", lambda _: bucket)
    far = row(tmp_path, spec={"image": "s3://bucket/me.png"})
    report = lane.render(far)
    assert report.error is not None
    assert (report.error.code, report.error.stage) == (Code.INPUT_UNREACHABLE, "inputs")
    lane._output = bucket
    report = lane.render(row(tmp_path, attempt=2))
    assert report.error is not None
    assert (report.error.code, report.error.stage) == (Code.UPLOAD_FAILED, "upload")


def test_after_a_stop_nothing_is_begun(service: Service, lane: ServiceLane, tmp_path: Path) -> None:
    service.answers[CREATE] = [refusal(503, "no_capacity", Retry_After="30")]
    lane.stop()
    report = lane.render(row(tmp_path))
    assert report.error is not None
    assert report.error.code is Code.CANCELLED
    assert lane.status().condition is GroupCondition.READY
