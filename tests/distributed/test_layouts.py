"""Every layout makes the same video as one rank: the same bits where only places change, 1e-4 where sums do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve_app.task import RenderTask
from tests.distributed.ranks import Ranks, Run, ranks
from tests.engine.test_rank_program import a_task

TOLERANCE = 1e-4
# Two clips and a half: caches roll over, the reference is replaced.
TASK = a_task(frames=60, infer_frames=24)
WIDE = replace(a_task(frames=40, infer_frames=12), image=np.full((64, 192, 3), 90, dtype=np.uint8))


@pytest.fixture(scope="module", name="alone")
def _alone(checkpoint: Path) -> Iterator[Ranks]:
    with ranks(checkpoint, "single") as gang:
        yield gang


def assert_same_bits(run: Run, expected: Run) -> None:
    assert run.frames.shape == expected.frames.shape
    assert np.array_equal(run.frames, expected.frames), f"differs by {np.abs(run.frames - expected.frames).max():.1e}"


def assert_close(run: Run, expected: Run) -> None:
    assert run.frames.shape == expected.frames.shape
    assert np.abs(run.frames - expected.frames).max() <= TOLERANCE


@pytest.mark.parametrize(
    "layout",
    [
        "stages=2",
        "stages=3",
        "stages=4",  # more stages than steps: one passes through
        "vae=1",
        "stages=3,vae=1",
        "vae=2",
        "vae=3",
        "stages=2,vae=2",
        "offload=layers",
        "stages=2,vae=1,offload=layers",
    ],
)
def test_a_layout_that_only_changes_places_gives_the_same_bits(checkpoint: Path, alone: Ranks, layout: str) -> None:
    with ranks(checkpoint, layout) as gang:
        for task in (TASK, WIDE):
            assert_same_bits(gang.run(task), alone.run(task))


@pytest.mark.parametrize(
    "layout",
    [
        "ulysses=2",
        "ulysses=3",  # 16 tokens of a frame, 40 of the sink: neither is a multiple of 3
        "ulysses=4",
        "stages=2,ulysses=2,vae=1",
        "stages=2,ulysses=2,vae=3",
        "ulysses=2,offload=layers",
    ],
)
def test_a_layout_that_shares_sequences_stays_within_1e_4(checkpoint: Path, alone: Ranks, layout: str) -> None:
    with ranks(checkpoint, layout) as gang:
        for task in (TASK, WIDE):
            assert_close(gang.run(task), alone.run(task))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sharded_weights_give_the_same_bits_as_whole_ones(checkpoint: Path, size: int) -> None:
    with ExitStack() as stack:
        whole = stack.enter_context(ranks(checkpoint, f"ulysses={size}"))
        sharded = stack.enter_context(ranks(checkpoint, f"ulysses={size},weight_shards={size}"))
        assert_same_bits(sharded.run(TASK), whole.run(TASK))
        assert_same_bits(sharded.run(WIDE), whole.run(WIDE))


def test_an_idle_step_more_or_less_changes_nothing(checkpoint: Path, alone: Ranks) -> None:
    """1 step on 3 stages: two stages only pass through, and the first clip's end still reaches them."""
    task = replace(TASK, sample_steps=1)
    with ranks(checkpoint, "stages=3,vae=1") as gang:
        assert_same_bits(gang.run(task), alone.run(task))


def test_the_portrait_may_stay(checkpoint: Path, alone: Ranks) -> None:
    task = replace(TASK, replace_reference=False)
    with ranks(checkpoint, "stages=3") as gang:
        assert_same_bits(gang.run(task), alone.run(task))


@pytest.mark.parametrize("layout", ["stages=3,vae=1", "stages=2,ulysses=2,vae=2", "ulysses=2,weight_shards=2"])
@pytest.mark.parametrize("cancel_before", [0, 1, 2])
def test_a_cancel_reaches_all_ranks_at_the_same_block_and_leaves_nothing_behind(
    checkpoint: Path, alone: Ranks, layout: str, cancel_before: int
) -> None:
    with ranks(checkpoint, layout) as gang:
        if cancel_before:
            cancelled = gang.run(TASK, cancel_before=cancel_before)
            assert len(cancelled.frames) == 12 * cancel_before - 3
        else:
            gang.run_to_nothing(TASK)
        for task in (WIDE, TASK):
            assert_close(gang.run(task), alone.run(task))


def test_videos_in_a_row_never_see_each_other(checkpoint: Path, alone: Ranks) -> None:
    tasks: list[RenderTask] = [TASK, WIDE, replace(TASK, seed=2), TASK]
    with ranks(checkpoint, "stages=2,vae=2") as gang:
        for task in tasks:
            assert_same_bits(gang.run(task), alone.run(task))
