"""Time: what follows from arithmetic, cards and layout."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serve_app.planning.calibration import load_calibration
from serve_app.planning.cost import Prediction, interpolated, predict
from serve_app.planning.geometry import FRAMES_PER_BLOCK, Size
from serve_app.planning.hardware import KINDS
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.workload import Workload

CALIBRATION = load_calibration()
WORK = Workload(Size(704, 384))


def predicted(layout: str, gpu: str = "H100", work: Workload = WORK) -> Prediction:
    return predict(work, ParallelLayout.parse(layout), KINDS[gpu], dtype="bfloat16", calibration=CALIBRATION)


def test_one_card_does_all_steps_and_decodes() -> None:
    time = predicted("single")
    assert time.period_seconds == pytest.approx(4 * time.call_seconds + time.decode_seconds)
    assert time.frames_per_second == pytest.approx(FRAMES_PER_BLOCK / time.period_seconds)


def test_stages_and_a_decoder_work_at_the_same_time() -> None:
    time = predicted("stages=4,vae=1")
    assert time.period_seconds == max(time.call_seconds, time.decode_seconds)
    assert time.first_frame_seconds == pytest.approx(predicted("single").first_frame_seconds)


def test_the_slowest_stage_sets_the_pace() -> None:
    time = predicted("stages=3,vae=1")
    assert time.period_seconds == pytest.approx(2 * time.call_seconds)


def test_the_whole_is_its_parts() -> None:
    time = predicted("stages=2")
    first_block = 4 * time.call_seconds + time.decode_seconds
    blocks = WORK.timeline.num_blocks
    assert time.generate_seconds == pytest.approx(first_block + (blocks - 1) * time.period_seconds)
    assert time.total_seconds == pytest.approx(time.conditioning_seconds + time.generate_seconds)
    assert time.gpu_seconds_per_video_second == pytest.approx(2 * time.total_seconds / WORK.timeline.seconds)


def test_ulysses_divides_the_call_but_must_trade() -> None:
    assert predicted("single").call_seconds / 2 < predicted("ulysses=2").call_seconds < predicted("single").call_seconds


def test_streamed_weights_may_be_slower_than_the_computing() -> None:
    small = Workload(Size(384, 256))
    units = 15_943_700_480 * 2 / CALIBRATION.host_link_bytes_per_second
    assert predicted("offload=layers", work=small).call_seconds == pytest.approx(units, rel=1e-3)


def test_a_longer_video_takes_proportionally_longer() -> None:
    short, long = (predicted("single", work=replace(WORK, num_frames=frames)) for frames in (600, 1200))
    assert long.generate_seconds == pytest.approx(2 * short.generate_seconds)


def test_measured_calls_win_over_efficiency_on_their_own_card() -> None:
    measured = replace(CALIBRATION, kind="measured", gpu="NVIDIA H100 80GB HBM3", step_seconds=((120.8, 0.2),))
    time = predict(WORK, ParallelLayout(), KINDS["H100"], dtype="bfloat16", calibration=measured)
    assert time.call_seconds == pytest.approx(0.2, rel=1e-3)
    assert time.kind == "measured"


@pytest.mark.parametrize(
    ("gpu", "name", "is_measured"),
    [
        ("RTX4090", "NVIDIA GeForce RTX 4090", True),
        ("RTXA6000", "NVIDIA RTX A6000", True),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("H100", "NVIDIA A100-SXM4-80GB", False),
        ("80", "NVIDIA H100 80GB HBM3", False),
        ("80", "", False),
    ],
)
def test_measured_calls_are_those_of_the_card_of_that_name(gpu: str, name: str, *, is_measured: bool) -> None:
    measured = replace(CALIBRATION, kind="measured", gpu=name, step_seconds=((100.0, 7.0),))
    time = predict(WORK, ParallelLayout(), KINDS[gpu], dtype="bfloat16", calibration=measured)
    assert (time.call_seconds > 7) == is_measured


@pytest.mark.parametrize(("x", "y"), [(10, 1), (5, 0.5), (20, 3), (15, 2), (40, 6)])
def test_points_are_joined_by_lines_and_scaled_beyond_them(x: float, y: float) -> None:
    assert interpolated(((20, 3), (10, 1)), x) == pytest.approx(y)
