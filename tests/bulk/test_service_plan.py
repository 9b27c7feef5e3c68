"""What a service tells of its groups is what this machine plans with."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.bulk.lanes.service_client import ServiceModel
from serve_app.bulk.service_plan import judge_of, pool_of
from serve_app.jobs.admission import Fits
from serve_app.jobs.fleet import Fleet
from serve_app.planning.calibration import load_calibration
from serve_app.planning.geometry import Size
from serve_app.planning.workload import Workload
from serve_app.schemas.service import PoolConfig

WORK = Workload(Size(640, 384), 48, 4, 480)


def a_fleet(**pool: Any) -> Fleet:
    return Fleet([PoolConfig(name="bulk", **pool)], calibration=load_calibration(), cpu_bytes=1 << 40)


def told_by(fleet: Fleet, *, pace: float, **facts: Any) -> ServiceModel:
    seconds = {row["preset"]: row["seconds_per_video_second"] * pace for row in fleet.table("bulk") if row["fits"]}
    return ServiceModel("http://it", facts.pop("model", "live-avatar"), 2, seconds_by_preset=seconds, **facts)


def judged_s(service: ServiceModel, work: Workload = WORK) -> float:
    verdict = judge_of(service, PoolConfig(name="bulk", gpu=service.gpu, **pool_of(service)))(work)
    assert isinstance(verdict, Fits)
    return verdict.seconds


def test_rows_take_what_the_service_itself_would_predict() -> None:
    fleet = a_fleet(checkpoint="/there", layout="stages=4", gpu="H100")
    service = told_by(fleet, pace=1.3, layout="stages=4", gpu="H100")
    assert judged_s(service) == pytest.approx(1.3 * fleet.predicted_s(WORK, "bulk"), rel=0.01)


def test_threads_that_nobody_tells_of_are_in_the_pace() -> None:
    fleet = a_fleet(model="live-avatar-tiny", threads_per_rank=16)
    service = told_by(fleet, pace=0.5, model="live-avatar-tiny")
    assert judged_s(service) == pytest.approx(0.5 * fleet.predicted_s(WORK, "bulk"), rel=0.01)


def test_nothing_is_refused_here_and_a_service_that_tells_nothing_has_the_pace_of_the_arithmetic() -> None:
    service = ServiceModel("http://it", "live-avatar", 1, gpu="24")
    fleet = a_fleet(checkpoint="/there", gpu="24")
    assert judged_s(service) == fleet.predicted_s(WORK, "bulk")
