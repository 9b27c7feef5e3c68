"""Verdicts: the numbers that the design states, who does not fit and why, and what is offered instead."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import InvalidRequestError
from serve_app.planning.calibration import load_calibration
from serve_app.planning.feasibility import Feasible, NeverFits, fits, layouts_for, rank_budgets, smaller_sizes
from serve_app.planning.geometry import Size
from serve_app.planning.hardware import GIB, parse_gpus
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.memory import estimate
from serve_app.planning.workload import Workload

ANALYTIC = load_calibration()
"""What a perfect calibration would leave free."""
HD = Size(704, 384)


def judged(size: Size, gpus: str, layout: str, *, infer_frames: int = 48) -> Feasible | NeverFits:
    work = Workload(size, infer_frames)
    return fits(work, ParallelLayout.parse(layout), parse_gpus(gpus), calibration=ANALYTIC)


def refused(size: Size, gpus: str, layout: str) -> NeverFits:
    verdict = judged(size, gpus, layout)
    assert isinstance(verdict, NeverFits)
    return verdict


def gib(size: Size, part: str, *, layout: str = "single", steps: int = 4) -> float:
    memory, *_ = estimate(
        Workload(size, sample_steps=steps), ParallelLayout.parse(layout), dtype="bfloat16", calibration=ANALYTIC
    )
    return next(one.num_bytes for one in (*memory.parts, *memory.phases) if one.name == part) / GIB


@pytest.mark.parametrize("size", [HD, Size(384, 256), Size(1280, 704)], ids=str)
@pytest.mark.parametrize(("part", "expected"), [("KV cache", 9.155), ("sink", 1.907)])
def test_keys_and_values_of_a_thousand_tokens(size: Size, part: str, expected: float) -> None:
    per_thousand = gib(size, part, steps=1) * 1000 / size.tokens_per_frame
    assert per_thousand == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(
    ("part", "layout", "steps", "expected"),
    [
        ("KV cache", "single", 1, 9.67),
        ("KV cache", "single", 4, 38.67),
        ("KV cache", "stages=4,vae=1", 4, 9.67),
        ("KV cache", "ulysses=4,weight_shards=4", 4, 9.67),
        ("sink", "single", 4, 2.01),
        ("transformer weights", "single", 4, 30.35),
        ("transformer weights", "ulysses=4,weight_shards=4", 4, 8.08),
        ("transformer weights", "offload=layers", 4, 0.66),
        ("streamed layers", "offload=layers", 4, 1.31),
        ("text keys and values", "single", 4, 0.39),
    ],
)
def test_parts_of_704x384(part: str, layout: str, steps: int, expected: float) -> None:
    assert gib(HD, part, layout=layout, steps=steps) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(
    ("size", "gpus", "layout"),
    [
        (HD, "5x80", "stages=4,vae=1"),
        (HD, "8x80", "8x80"),
        (Size(384, 256), "1x24", "offload=layers"),
        (Size(640, 384), "1x48", "offload=layers"),
        (Size(640, 384), "1x80", "single"),
        (HD, "1xH200", "single"),
        (HD, "4x24", "4x24"),
    ],
    ids=str,
)
def test_fits(size: Size, gpus: str, layout: str) -> None:
    assert isinstance(judged(size, gpus, layout), Feasible)


@pytest.mark.parametrize(
    ("gpus", "layout", "part"),
    [
        ("1x24", "single", "transformer weights"),
        ("1x24", "offload=layers", "KV cache"),
        ("1x48", "offload=layers", "decoder stream"),
        ("4xRTX4090-ECC", "4x24", "denoise"),
    ],
)
def test_704x384_is_refused_and_the_part_that_does_not_fit_is_named(gpus: str, layout: str, part: str) -> None:
    verdict = refused(HD, gpus, layout)
    assert verdict.part == part
    assert verdict.needed_bytes > verdict.available_bytes == parse_gpus(gpus).kind.total_bytes


def test_a_refusal_names_rank_need_card_and_part() -> None:
    assert re.fullmatch(
        r"never fits: rank 0 \(stage 0, ulysses 0\) needs 23\.\d\d GiB of 22\.15 GiB, 1\.\d\d GiB too much; "
        r"what no longer fits is: denoise",
        str(refused(HD, "4xRTX4090-ECC", "4x24")),
    )


@pytest.mark.parametrize("seconds", [20, 60, 600])
def test_704x384_fits_one_80_gb_card_by_a_hair_however_long_the_speech(seconds: int) -> None:
    """The first minute is encoded before the caches of the video are there, later parts in short windows."""
    work = Workload(HD, speech_seconds=seconds)
    verdict = fits(work, ParallelLayout(), parse_gpus("1x80"), calibration=ANALYTIC)
    assert isinstance(verdict, Feasible)
    (rank,) = verdict.ranks
    assert 0 < (rank.available_bytes - rank.needed_bytes) / GIB < 1


@pytest.mark.parametrize(
    ("size", "gpus", "layout", "changes"),
    [
        (HD, "1x24", "single", ["size 448x256", "infer_frames 12"]),
        (HD, "1x24", "offload=layers", ["size 448x256", "infer_frames 12"]),
        (HD, "4xRTX4090-ECC", "4x24", ["layout stages=4,offload=layers", "size 704x320", "infer_frames 36"]),
    ],
    ids=str,
)
def test_the_nearest_that_fit_are_offered_best_first(size: Size, gpus: str, layout: str, changes: list[str]) -> None:
    assert [one.change for one in refused(size, gpus, layout).nearest] == changes


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(2, 20),
    height=st.integers(2, 11),
    gpus=st.sampled_from(["1x24", "2x24", "4x24", "1x48", "4xL40S", "1x80", "2xH100"]),
    layout=st.sampled_from(["single", "offload=layers", "stages=4,vae=1", "ulysses=4,weight_shards=4"]),
)
def test_every_offer_fits_these_cards(width: int, height: int, gpus: str, layout: str) -> None:
    work, cards = Workload(Size(64 * width, 64 * height)), parse_gpus(gpus)
    verdict = fits(work, ParallelLayout.parse(layout), cards, calibration=ANALYTIC)
    if isinstance(verdict, Feasible):
        return
    for one in verdict.nearest:
        assert one.layout.world_size <= cards.count
        assert one.work.size.area <= work.size.area
        assert one.work.infer_frames <= work.infer_frames
        assert isinstance(fits(one.work, one.layout, cards, calibration=ANALYTIC), Feasible)


@given(area=st.integers(4, 120), ratio=st.sampled_from([1.0, 1.5, 0.5]))
@settings(deadline=None)
def test_a_smaller_video_never_needs_more(area: int, ratio: float) -> None:
    larger = Size(64 * max(1, round((area * ratio) ** 0.5)), 64 * max(1, round((area / ratio) ** 0.5)))
    for smaller in smaller_sizes(larger)[:3]:
        for layout in ("single", "4x24"):
            needs = [
                max(rank.needed_bytes for rank in _budgets(size, layout)) for size in (smaller, larger)
            ]  # fmt: skip
            assert needs[0] <= needs[1]


def _budgets(size: Size, layout: str) -> tuple:  # type: ignore[type-arg]
    return rank_budgets(Workload(size), ParallelLayout.parse(layout), parse_gpus("24"), calibration=ANALYTIC)


def test_num_clip_changes_no_gpu_memory() -> None:
    short, long = (Workload(HD, num_frames=frames, speech_seconds=600) for frames in (12, 48_000))
    needs = [
        [rank.needed_bytes for rank in rank_budgets(work, ParallelLayout(), parse_gpus("80"), calibration=ANALYTIC)]
        for work in (short, long)
    ]
    assert needs[0] == needs[1]


@given(count=st.integers(1, 48), steps=st.integers(1, 6), width=st.sampled_from([64, 128, 704]))
@settings(deadline=None)
def test_layouts_use_at_most_the_cards_and_all_suit_model_and_picture(count: int, steps: int, width: int) -> None:
    work = Workload(Size(width, 384), sample_steps=steps)
    listed = list(layouts_for(work, count, num_heads=40))
    assert ParallelLayout() in listed
    assert len(set(listed)) == len(listed)
    for layout in listed:
        assert layout.world_size <= count
        assert all(layout.steps_of(stage, steps) for stage in range(layout.stages))
        assert len(layout.decoding_ranks) <= width // 8


def test_more_decoding_ranks_than_columns_are_refused_before_memory() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        judged(Size(64, 384), "10x80", "ulysses=10")
    assert str(refused.value) == (
        "layout ulysses=10: 10 ranks decode, but the picture has 8 latent columns to share; "
        "use a picture 80 pixels wide or wider, or let a rank of its own decode: vae=1"
    )
    assert isinstance(judged(Size(64, 384), "11x80", "ulysses=10,vae=1"), Feasible)


def test_no_narrower_picture_is_offered_than_its_ranks_can_share() -> None:
    verdict = judged(Size(128, 7168), "10x24", "ulysses=10,weight_shards=10", infer_frames=480)
    assert isinstance(verdict, NeverFits)
    assert all(len(one.layout.decoding_ranks) <= one.work.size.latent_width for one in verdict.nearest)


def test_heads_that_cannot_be_divided_are_refused_before_memory() -> None:
    with pytest.raises(InvalidRequestError, match="ulysses=3 does not divide"):
        judged(HD, "3x80", "ulysses=3")


def test_a_stage_without_a_step_is_told() -> None:
    verdict = fits(
        Workload(Size(384, 256), sample_steps=3), ParallelLayout(stages=4), parse_gpus("4x80"), calibration=ANALYTIC
    )
    assert isinstance(verdict, Feasible)
    assert verdict.remarks == ("stage 0 owns no step: 4 stages share 3 steps, so latents pass through",)
