"""Replica groups: what fails is told and rebuilt; the next task is right; a spent budget ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_cluster.errors import (
    FailureKind,
    GroupUnavailableError,
    PlacementError,
    RankFailedError,
    RestartBudgetSpentError,
)
from ray_cluster.local import LocalCluster
from ray_cluster.processes import ProcessIdentity, is_alive
from ray_cluster.replica_group import LEGAL_TRANSITIONS, GroupEvent, GroupState, ReplicaGroup
from ray_cluster.restart_budget import RestartPolicy
from tests.ray_cluster.conftest import TIMEOUTS, bundles, eventually, in_time, spec
from tests.ray_cluster.fake_program import FakeTask, RefusalError

pytestmark = pytest.mark.usefixtures("cluster")

NUM_RANKS = 3
POLICY = RestartPolicy(max_restarts=100, backoff_s=0.05, max_backoff_s=0.05)


def limit(_: int) -> float:
    return 1.0


@pytest.fixture(scope="module")
def group(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaGroup]:
    """One group for the whole matrix: each failure is the past of the next one."""
    assert cluster.address
    folder = tmp_path_factory.mktemp("group")
    with ReplicaGroup("matrix", spec(folder), bundles(NUM_RANKS), timeouts=TIMEOUTS, restarts=POLICY) as made:
        yield made


def processes(group: ReplicaGroup) -> list[ProcessIdentity]:
    gang = group.gang
    return [] if gang is None else [beat.process for beat in gang.heartbeats()]


def fail(group: ReplicaGroup, rank: int, act: str) -> tuple[RankFailedError, list[int]]:
    """Runs a task that fails at its third item, and one after it; returns the error and what came before."""
    group.wait_ready(timeout_s=30)
    before = eventually(lambda: processes(group) if len(processes(group)) == NUM_RANKS else None)
    seen: list[int] = []
    items = group.run(FakeTask(8, acts={(rank, 3): act}), item_limit_s=limit if act == "hang" else in_time)
    with pytest.raises(RankFailedError) as caught:
        seen.extend(item.index for item in items)
    assert not [process for process in before if is_alive(process)]
    after = group.run(FakeTask(5, "next"), item_limit_s=in_time)
    assert [(item.index, item.label) for item in after] == [(index, "next") for index in range(5)]
    return caught.value, seen


MATRIX = [
    ("kill", FailureKind.DIED, "killed by signal 9"),
    ("exit", FailureKind.DIED, ""),
    ("stop", FailureKind.FROZEN, "no heartbeat for"),
    ("hang", FailureKind.NO_PROGRESS, "'item 2'"),
    ("raise", FailureKind.EXCEPTION, "RefusalError: no such voice"),
    ("memory", FailureKind.OUT_OF_MEMORY, "MemoryError: of the machine"),
    ("gpu memory", FailureKind.OUT_OF_MEMORY, "OutOfMemoryError: of the GPU"),
]
DEFAULT_RANK = {"kill": 1, "exit": None, "stop": 0, "hang": 1, "raise": 0, "memory": 2, "gpu memory": None}
"""The other combinations are marked as chaos."""


@pytest.mark.parametrize(
    ("act", "rank", "kind", "words"),
    [
        pytest.param(act, rank, kind, words, marks=[] if rank == DEFAULT_RANK[act] else pytest.mark.chaos)
        for act, kind, words in MATRIX
        for rank in range(NUM_RANKS)
    ],
)
def test_a_failure_is_named_and_the_next_task_is_right(
    group: ReplicaGroup, act: str, rank: int, kind: FailureKind, words: str
) -> None:
    error, seen = fail(group, rank, act)
    role = ("source", "middle", "sink")[rank]
    assert (error.kind, seen) == (kind, list(range(len(seen))))
    assert words in str(error)
    assert len(seen) <= 3
    if kind is FailureKind.NO_PROGRESS:
        assert f"rank {rank} ({role}): 'item 2'" in error.detail
    else:
        assert (error.rank, error.role) == (rank, role)
    if act == "raise":
        assert isinstance(error.cause, RefusalError)
        assert (str(error.cause), error.cause.remedy) == ("no such voice", "take another")
        assert "in act" in error.traceback


def test_a_rank_that_dies_between_tasks_costs_no_task(group: ReplicaGroup) -> None:
    group.wait_ready(timeout_s=30)
    gang = group.gang
    assert gang is not None
    eventually(lambda: len(gang.heartbeats()) == NUM_RANKS)
    gang._actors[1].__ray_terminate__.remote()
    eventually(lambda: gang.failure)
    assert len(list(group.run(FakeTask(5), item_limit_s=in_time))) == 5


def test_events_tell_every_change_and_all_are_legal(tmp_path: Path) -> None:
    events: list[GroupEvent] = []
    options: Any = {"timeouts": TIMEOUTS, "restarts": POLICY, "on_event": events.append}
    with ReplicaGroup("told", spec(tmp_path), bundles(1), **options) as group:
        with pytest.raises(RankFailedError):
            list(group.run(FakeTask(2, acts={(0, 1): "raise"}), item_limit_s=limit))
        assert len(list(group.run(FakeTask(2), item_limit_s=limit))) == 2
    assert [event.after.value for event in events] == [
        "ready", "busy", "starting", "ready", "busy", "ready", "draining", "stopped",
    ]  # fmt: skip
    assert all(event.after in LEGAL_TRANSITIONS[event.before] for event in events)
    assert "no such voice" in events[2].reason
    assert events[-1].num_restarts == 1


def test_drain_lets_the_running_task_end_and_takes_no_other(tmp_path: Path) -> None:
    with ReplicaGroup("drained", spec(tmp_path), bundles(2), timeouts=TIMEOUTS) as group:
        items = group.run(FakeTask(12), item_limit_s=in_time)
        seen = [next(items).index]
        drain = threading.Thread(target=group.drain, kwargs={"timeout_s": 20})
        drain.start()
        eventually(lambda: group.state is GroupState.DRAINING)
        with pytest.raises(GroupUnavailableError, match="is draining"):
            next(group.run(FakeTask(1), item_limit_s=in_time))
        seen += [item.index for item in items]
        drain.join(20)
        assert (seen, group.state) == (list(range(12)), GroupState.STOPPED)


def test_stop_ends_a_task_that_is_running(tmp_path: Path) -> None:
    group = ReplicaGroup("stopped", spec(tmp_path), bundles(2), timeouts=TIMEOUTS)
    group.start()
    items = group.run(FakeTask(10_000), item_limit_s=in_time)
    next(items)
    consumer = threading.Thread(target=lambda: list(items))
    consumer.start()
    group.stop()
    consumer.join(10)
    assert not consumer.is_alive()
    assert group.state is GroupState.STOPPED


def test_a_group_that_is_not_ready_in_time_says_so(tmp_path: Path) -> None:
    group = ReplicaGroup("slow", spec(tmp_path, at_start={1: "hang"}), bundles(2), timeouts=TIMEOUTS)
    group.start()
    with pytest.raises(GroupUnavailableError, match=r"slow is still starting after 0\.1 s"):
        next(group.run(FakeTask(1), item_limit_s=in_time, ready_timeout_s=0.1))
    group.stop()
    assert group.state is GroupState.STOPPED


def test_a_program_that_refuses_to_start_is_shown_as_it_is(tmp_path: Path) -> None:
    group = ReplicaGroup("refused", spec(tmp_path, at_start={1: "raise"}), bundles(2), timeouts=TIMEOUTS)
    with pytest.raises(RankFailedError) as caught, group:
        pass
    assert isinstance(caught.value.cause, RefusalError)
    assert group.state is GroupState.FAILED
    with pytest.raises(RankFailedError, match="no such voice"):
        next(group.run(FakeTask(1), item_limit_s=in_time))


def test_a_program_that_does_not_exist_is_shown_as_it_is(tmp_path: Path) -> None:
    missing = spec(tmp_path, program="tests.ray_cluster.fake_program:NoProgram")
    with pytest.raises(RankFailedError, match="NoProgram"), ReplicaGroup("gone", missing, bundles(1)):
        pass


def test_the_budget_of_restarts_ends_and_tells_every_reason(tmp_path: Path) -> None:
    policy = RestartPolicy(max_restarts=1, backoff_s=0.05)
    with ReplicaGroup("spent", spec(tmp_path), bundles(1), timeouts=TIMEOUTS, restarts=policy) as group:
        for act in ("raise", "memory"):
            with pytest.raises(RankFailedError):
                list(group.run(FakeTask(2, acts={(0, 0): act}), item_limit_s=limit))
        with pytest.raises(RestartBudgetSpentError, match="more than 1 restarts") as caught:
            next(group.run(FakeTask(1), item_limit_s=in_time))
        assert [("no such voice" in r, "of the machine" in r) for r in caught.value.reasons] == [
            (True, False),
            (False, True),
        ]
        assert group.state is GroupState.FAILED


@pytest.mark.chaos
def test_a_start_that_dies_again_and_again_spends_the_budget(tmp_path: Path) -> None:
    policy = RestartPolicy(max_restarts=1, backoff_s=0.05)
    group = ReplicaGroup("dying", spec(tmp_path, at_start={0: "kill"}), bundles(1), timeouts=TIMEOUTS, restarts=policy)
    with pytest.raises(RestartBudgetSpentError, match=r"rank 0 \(starting\) died"), group:
        pass


def test_a_group_without_a_place_fails_with_the_reason(tmp_path: Path) -> None:
    group = ReplicaGroup("wide", spec(tmp_path), bundles(9), timeouts=TIMEOUTS.__class__(placement_s=0.5))
    with pytest.raises(PlacementError, match="can never hold it"), group:
        pass
    assert group.state is GroupState.FAILED
