"""Calibration: what is measured on the tiny model is what planning foretells; a fit, its errors, and the file."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serve_app.engine.calibrate import dims_of, measure, report
from serve_app.model.checkpoint import Placement
from serve_app.model.config import ModelSizes
from serve_app.model.tiny import TINY
from serve_app.planning.calibration import load_calibration
from serve_app.planning.fitting import Origin, Peak, Point, as_json, fit, leave_one_out
from serve_app.planning.geometry import Size
from serve_app.planning.network import PUBLISHED
from serve_app.planning.network import TINY as TINY_DIMS
from serve_app.planning.workload import Workload
from tests.planning.live_storage import LiveStorage

ROOT = Path(__file__).parents[2]
CPU = Placement(torch.device("cpu"), torch.float32)
ORIGIN = Origin("NVIDIA H100", "570", "2.13", "abc1234", "2026-01-01", tflops=989, context_bytes=500 * 2**20)


class LiveMeter:
    """Counts live storages on the CPU, where torch keeps no books."""

    def __init__(self, live: LiveStorage) -> None:
        self._live = live

    def allocated(self) -> int:
        return self._live.live_bytes

    def reset_peak(self) -> None:
        self._live.reset_peak()

    def peak(self) -> int:
        return self._live.peak_bytes

    def now(self) -> float:
        return time.perf_counter()


def a_point(scale: float, *, excess: float = 1.0, seconds: float = 1.0) -> Point:
    working = round(scale * 2**30)
    return Point(
        size="704x384",
        infer_frames=48,
        call_tflop=100 * scale,
        call_seconds=0.2 * scale * seconds,
        decode_tflop=20 * scale,
        decode_seconds=0.1 * scale,
        denoise=Peak(round(working * excess), working),
        decode=Peak(working // 2, working // 2),
        resident=Peak(10 * 2**30, 10 * 2**30),
        total_bytes=10 * 2**30 + round(working * excess),
    )


def test_a_run_of_the_tiny_model_allocates_what_is_foretold() -> None:
    """Real tensors on the CPU, so float32; the model is so small that its smallest tensors count."""
    works = [Workload(Size(256, 128), 12, sample_steps=1), Workload(Size(192, 192), 24, sample_steps=1)]
    with LiveStorage() as live:
        points = measure(TINY, CPU, works, LiveMeter(live), repeats=1)
    for point in points:
        assert point.resident.predicted_bytes == pytest.approx(point.resident.measured_bytes, rel=0.03)
        assert point.denoise.predicted_bytes == pytest.approx(point.denoise.measured_bytes, rel=0.06)
        assert point.decode.predicted_bytes == pytest.approx(point.decode.measured_bytes, rel=0.05)
        assert point.call_seconds > 0
    assert len(leave_one_out(points)) == len(points)


def test_the_published_model_has_the_published_sizes() -> None:
    assert dims_of(ModelSizes()) == PUBLISHED
    assert dims_of(TINY) == TINY_DIMS


def test_a_fit_takes_the_worst_excess_and_keeps_what_was_not_measured() -> None:
    base = load_calibration()
    found = fit([a_point(1), a_point(2, excess=1.1), a_point(3)], ORIGIN, base=base)
    assert (found.kind, found.gpu, found.commit, found.context_bytes) == (
        "measured",
        "NVIDIA H100",
        "abc1234",
        524288000,
    )
    assert found.dynamic_margin == pytest.approx(1.1)
    assert found.reserve_fraction == pytest.approx(0.02)
    assert found.reserve_bytes == 0
    assert found.dit_efficiency == pytest.approx(500 / 989, rel=1e-3)
    assert found.step_seconds == ((100, 0.2), (200, 0.4), (300, 0.6))
    assert found.communicator_bytes == base.communicator_bytes


def test_a_peak_beyond_its_formulas_widens_the_reserve() -> None:
    worse = replace(a_point(2), total_bytes=round(12 * 2**30 * 1.05))
    assert fit([a_point(1), worse], ORIGIN, base=load_calibration()).reserve_fraction == pytest.approx(0.07)


def test_leaving_a_point_out_shows_what_the_others_do_not_know() -> None:
    slow, *_ = leave_one_out([a_point(2, excess=1.5, seconds=1.2), a_point(1), a_point(3)])
    assert slow.memory_error == pytest.approx(13 / 12 - 1)
    assert slow.time_error == pytest.approx(0.2)
    assert "memory +8.33%  time +20.00%" in report([a_point(2, excess=1.5, seconds=1.2), a_point(1), a_point(3)])


def test_a_written_calibration_reads_back(tmp_path: Path) -> None:
    points = [a_point(1), a_point(2)]
    found = fit(points, ORIGIN, base=load_calibration())
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(as_json(found, points)))
    assert load_calibration(path) == found


@pytest.mark.parametrize("command", [["serve_app.cli", "calibrate"], ["serve_app.engine.calibrate"]], ids=str)
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path, command: list[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    process = subprocess.run(
        [sys.executable, "-m", *command, "--out", str(tmp_path / "c.json")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 2
    assert "there is no GPU to calibrate on; run this on the kind of GPU that will render" in process.stderr
    assert list(tmp_path.iterdir()) == []
