"""The schedule: a pure function of its seed, at the rate that was asked for; and traces of it."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest

from load_tests.arrivals import SHAPES, Arrival, Mix, Pattern, draw_schedule, read_trace, write_trace

MIX = Mix(
    classes={"interactive": 3, "bulk": 1},
    sizes=("64x64", "128x64"),
    num_clips=(1, 2, 5),
    deadline_s=12.5,
    readers={"play": 1, "stop": 1},
)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_seed_gives_the_same_schedule(shape: str) -> None:
    pattern = Pattern(shape=shape, rate=20, duration_s=50)
    assert draw_schedule(pattern, MIX, seed="7") == draw_schedule(pattern, MIX, seed="7")


def test_a_seed_means_the_same_arrivals_on_every_machine() -> None:
    first, second = draw_schedule(Pattern(rate=2, duration_s=3), MIX, seed="0/0")[:2]
    assert (round(first.at_s, 6), round(second.at_s, 6)) == (0.402509, 0.640775)


def test_other_seeds_give_other_schedules() -> None:
    schedules = {tuple(draw_schedule(Pattern(rate=5), MIX, seed=seed)) for seed in ("0/0", "0/1", "1/0", "1/1")}
    assert len(schedules) == 4


@pytest.mark.parametrize("shape", SHAPES)
def test_arrivals_come_at_the_rate_in_order_and_within_the_time(shape: str) -> None:
    times = [one.at_s for one in draw_schedule(Pattern(shape=shape, rate=50, duration_s=200), Mix(), seed="0")]
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 200


def test_poisson_gaps_vary_as_much_as_they_last() -> None:
    times = [one.at_s for one in draw_schedule(Pattern(rate=50, duration_s=200), Mix(), seed="0")]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)


def test_uniform_arrivals_are_a_comb_and_bursts_come_at_once() -> None:
    comb = draw_schedule(Pattern(shape="uniform", rate=4, duration_s=1), Mix(), seed="0")
    bursts = draw_schedule(Pattern(shape="burst", rate=4, duration_s=2, burst=4), Mix(), seed="0")
    assert [one.at_s for one in comb] == [0, 0.25, 0.5, 0.75]
    assert [one.at_s for one in bursts] == [0] * 4 + [1] * 4


def test_the_mix_is_drawn_by_weight_and_another_shape_asks_for_the_same_videos() -> None:
    poisson, comb = (
        draw_schedule(Pattern(shape=shape, rate=100, duration_s=100), MIX, seed="3") for shape in ("poisson", "uniform")
    )
    interactive = sum(one.priority == "interactive" for one in comb) / len(comb)
    assert interactive == pytest.approx(0.75, abs=0.02)
    assert {one.num_clip for one in comb} == {1, 2, 5}
    assert [(one.size, one.num_clip) for one in poisson[:99]] == [(one.size, one.num_clip) for one in comb[:99]]


def test_a_trace_brings_the_schedule_back(tmp_path: Path) -> None:
    arrivals = draw_schedule(Pattern(rate=30), MIX, seed="1")
    write_trace(tmp_path / "trace.jsonl", arrivals)
    assert read_trace(tmp_path / "trace.jsonl") == arrivals


def test_a_trace_written_by_others_needs_no_more_than_time_class_size_and_length(tmp_path: Path) -> None:
    rows = '{"time": 2, "class": "bulk", "size": "64x64", "num_clip": 3}\n' * 1
    rows += '{"time": 1, "class": "standard", "size": "64x64", "num_clip": 1, "deadline": 9}\n'
    (tmp_path / "trace.jsonl").write_text(rows)
    late, early = Arrival(2, "bulk", "64x64", 3), Arrival(1, "standard", "64x64", 1, 9)
    assert read_trace(tmp_path / "trace.jsonl") == [early, late]


@pytest.mark.parametrize(
    "row",
    [
        "{",
        "[]",
        '{"time": 1}',
        '{"time": -1, "class": "bulk", "size": "64x64", "num_clip": 3}',
        '{"time": 1, "class": "urgent", "size": "64x64", "num_clip": 3}',
        '{"time": 1, "class": "bulk", "size": "64x64", "num_clip": 0}',
    ],
)
def test_a_bad_line_of_a_trace_is_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "trace.jsonl").write_text(f'{{"time": 0, "class": "bulk", "size": "64x64", "num_clip": 3}}\n{row}\n')
    with pytest.raises(ValueError, match=r"trace\.jsonl:2"):
        read_trace(tmp_path / "trace.jsonl")


@pytest.mark.parametrize("wrong", [{"shape": "wave"}, {"rate": 0}, {"duration_s": -1}, {"burst": 0}])
def test_a_pattern_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Pattern(**wrong)  # type: ignore[arg-type]
