"""Gangs that work: order, back-pressure, cancel, early close, and an end in good order."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_cluster.errors import FailureKind, GangBusyError, RankFailedError
from ray_cluster.gang import Gang
from ray_cluster.local import LocalCluster
from ray_cluster.placement import create_placement
from ray_cluster.processes import is_alive
from tests.ray_cluster.conftest import TIMEOUTS, MakeGang, bundles, eventually, in_time, spec
from tests.ray_cluster.fake_program import FakeTask

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def shared_gang(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gang]:
    """One gang of three for the tests that leave it whole."""
    assert cluster.address
    program = spec(tmp_path_factory.mktemp("shared"))
    with (
        create_placement(bundles(3), name="shared", timeout_s=20) as placement,
        Gang.start(placement, program, name="shared", timeouts=TIMEOUTS) as gang,
    ):
        yield gang


def indices(items: Any) -> list[int]:
    return [item.index for item in items]


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_results_come_in_order_task_after_task(make_gang: MakeGang, tmp_path: Path, num_ranks: int) -> None:
    with make_gang(num_ranks) as gang:
        assert [report.role for report in gang.reports] == ["source", "middle", "middle", "sink"][:num_ranks]
        for label in ("a", "b"):
            items = list(gang.run(FakeTask(20, label), item_limit_s=in_time))
            assert [(item.index, item.label) for item in items] == [(index, label) for index in range(20)]
        processes = [beat.process for beat in gang.heartbeats()]
        assert len(processes) == num_ranks
    assert not [process for process in processes if is_alive(process)]
    assert len(list(tmp_path.glob("closed-*"))) == num_ranks


def test_no_rank_runs_further_ahead_than_the_window(make_gang: MakeGang, tmp_path: Path) -> None:
    begun, window = tmp_path / "begun", 2 + 1
    gang = make_gang(2, run_ahead=1)
    for num_taken, _ in enumerate(gang.run(FakeTask(12, begun=begun), item_limit_s=in_time), start=1):
        farthest = min(num_taken + window, 12) - 1
        eventually(lambda farthest=farthest: begun.read_text() == str(farthest))
    assert num_taken == 12


def test_a_consumer_slower_than_the_progress_limit_is_no_failure(shared_gang: Gang) -> None:
    items = shared_gang.run(FakeTask(8), item_limit_s=lambda _: 0.5)
    first = next(items)
    time.sleep(1.5)
    assert indices([first, *items]) == list(range(8))


def test_cancel_ends_the_task_early_and_the_next_one_runs_whole(shared_gang: Gang) -> None:
    gang = shared_gang
    items = gang.run(FakeTask(10_000), item_limit_s=in_time)
    first = [next(items), next(items)]
    threading.Thread(target=gang.cancel).start()
    assert indices([*first, *items])[-1] < 100
    assert indices(gang.run(FakeTask(5), item_limit_s=in_time)) == list(range(5))


def test_closing_the_iterator_ends_the_task(shared_gang: Gang) -> None:
    gang = shared_gang
    items = gang.run(FakeTask(10_000), item_limit_s=in_time)
    assert indices(itertools.islice(items, 3)) == [0, 1, 2]
    items.close()
    assert gang.failure is None
    assert indices(gang.run(FakeTask(5), item_limit_s=in_time)) == list(range(5))


def test_a_closed_task_that_does_not_end_costs_the_gang(make_gang: MakeGang) -> None:
    gang = make_gang(2, drain_s=0.5)
    items = gang.run(FakeTask(100, acts={(1, 3): "hang"}), item_limit_s=in_time)
    next(items)
    items.close()
    assert gang.failure is not None
    assert gang.failure.kind is FailureKind.NO_PROGRESS
    assert not any(is_alive(beat.process) for beat in gang.heartbeats())
    with pytest.raises(RankFailedError, match=r"cancelled but has not ended within 0\.5 s"):
        next(gang.run(FakeTask(1), item_limit_s=in_time))


@pytest.mark.parametrize(
    ("task", "rank", "words"),
    [
        (FakeTask(3, "lock"), 1, "cannot pickle '_thread.lock' object"),
        (FakeTask(3, "everyone"), 0, "its start report says is_output=False"),
        pytest.param(
            FakeTask(3, acts={(0, 1): "unpicklable"}),
            0,
            "UnpicklableError: <unlocked _thread.lock",
            marks=pytest.mark.chaos,
        ),
    ],
)
def test_what_cannot_travel_is_an_error_of_its_rank(make_gang: MakeGang, task: FakeTask, rank: int, words: str) -> None:
    gang = make_gang(2)
    with pytest.raises(RankFailedError, match=words) as caught:
        list(gang.run(task, item_limit_s=in_time))
    assert (caught.value.kind, caught.value.rank) == (FailureKind.EXCEPTION, rank)


@pytest.mark.chaos
def test_a_start_that_takes_too_long_says_who_does_what(make_gang: MakeGang) -> None:
    with pytest.raises(RankFailedError, match=r"not started within 5 s: .*rank 1 \(starting\): 'starts'") as caught:
        make_gang(2, at_start={1: "hang"}, start_s=5)
    assert caught.value.kind is FailureKind.NO_PROGRESS


def test_a_gang_runs_one_task_at_a_time(shared_gang: Gang) -> None:
    gang = shared_gang
    items = gang.run(FakeTask(3), item_limit_s=in_time)
    next(items)
    with pytest.raises(GangBusyError, match="runs a task already"):
        next(gang.run(FakeTask(1), item_limit_s=in_time))
    assert indices(items) == [1, 2]


def test_two_gangs_share_a_machine(make_gang: MakeGang, shared_gang: Gang) -> None:
    left, right = shared_gang, make_gang(2)
    pairs = zip(
        left.run(FakeTask(6, "l"), item_limit_s=in_time), right.run(FakeTask(6, "r"), item_limit_s=in_time), strict=True
    )
    assert [(a.label, b.label, a.index == b.index) for a, b in pairs] == [("l", "r", True)] * 6


def test_environment_and_threads_are_set_before_the_program_is_imported(make_gang: MakeGang) -> None:
    gang = make_gang(1, threads_per_rank=3, env={"FAKE_COLOUR": "blue"})
    facts = gang.reports[0].facts
    assert (facts["OMP_NUM_THREADS"], facts["FAKE_COLOUR"]) == ("3", "blue")


@pytest.mark.parametrize("num_outputs", [pytest.param(0, marks=pytest.mark.chaos), 2])
def test_exactly_one_rank_is_the_output(make_gang: MakeGang, num_outputs: int) -> None:
    with pytest.raises(RankFailedError, match="exactly one rank of a gang yields results"):
        make_gang(2, num_outputs=num_outputs)
