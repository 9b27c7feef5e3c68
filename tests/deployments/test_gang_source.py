"""Frames from gangs on a real Ray: the bytes of one rank, whatever happened to the gang before."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_cluster.bundles import GroupBundles
from ray_cluster.errors import FailureKind, RankFailedError
from ray_cluster.local import LocalCluster
from ray_cluster.nvml import GpuReadError, NoGpus
from ray_cluster.replica_group import GroupState, ReplicaGroup
from serve_app.deployments import local_gang
from serve_app.deployments.gang_source import BlockTimes, GangSource, as_avatar_error, gang_spec
from serve_app.deployments.local_gang import usable_gpus
from serve_app.errors import (
    AvatarError,
    CheckpointError,
    GangFailedError,
    InvalidRequestError,
    RankError,
    RenderCancelledError,
)
from serve_app.planning.layout import ParallelLayout
from serve_app.schemas.config import GangLimits
from serve_app.task import FrameBlock, RenderTask
from tests.deployments.conftest import LIMITS, TIMEOUTS, StartGroup
from tests.engine.test_rank_program import a_task, digest

TASK = a_task(frames=60, infer_frames=24)
LONG = a_task(frames=240, infer_frames=24)


def source_of(group: ReplicaGroup) -> GangSource:
    return GangSource(group, limits=LIMITS)


def frames(group: ReplicaGroup, task: RenderTask = TASK) -> list[FrameBlock]:
    return list(source_of(group).frames(task, is_cancelled=lambda: False))


@pytest.fixture(scope="module", name="alone")
def _alone(start_group: StartGroup) -> ReplicaGroup:
    """A gang of one rank: what the others are compared with."""
    return start_group("single")


@pytest.fixture(scope="module", name="five")
def _five(start_group: StartGroup) -> ReplicaGroup:
    return start_group("stages=3,vae=2")


def test_five_ranks_make_the_bytes_of_one(alone: ReplicaGroup, five: ReplicaGroup) -> None:
    assert five.gang is not None
    assert [report.role for report in five.gang.reports] == [
        *(f"stage {stage}, ulysses 0" for stage in range(3)),
        "vae 0",
        "vae 1",
    ]
    made = frames(five)
    assert [block.index for block in made] == [0, 1, 2, 3, 4]
    assert digest(made) == digest(frames(alone))


def test_two_gangs_on_one_machine_work_at_the_same_time(alone: ReplicaGroup, five: ReplicaGroup) -> None:
    with ThreadPoolExecutor(2) as pool:
        at_once = pool.map(lambda group: digest(frames(group, LONG)), [alone, five])
        first, second = list(at_once)
    assert first == second


def test_a_cancel_takes_effect_at_the_next_block_and_the_next_video_is_right(
    alone: ReplicaGroup, five: ReplicaGroup
) -> None:
    made: list[FrameBlock] = []
    blocks = source_of(five).frames(LONG, is_cancelled=lambda: len(made) == 2)
    with pytest.raises(RenderCancelledError):
        made.extend(_collected(blocks, made))
    assert [block.index for block in made] == [0, 1]
    assert five.state is GroupState.READY
    assert digest(frames(five)) == digest(frames(alone))


def _collected(blocks: object, made: list[FrameBlock]) -> list[FrameBlock]:
    """Puts every block into `made` as soon as it is there."""
    for block in blocks:  # type: ignore[attr-defined]
        made.append(block)  # noqa: PERF402
    return []


def test_a_consumer_that_leaves_ends_the_video_and_keeps_the_gang(alone: ReplicaGroup, five: ReplicaGroup) -> None:
    before = pids(five)
    blocks = source_of(five).frames(LONG, is_cancelled=lambda: False)
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert digest(frames(five)) == digest(frames(alone))
    assert pids(five) == before


def pids(group: ReplicaGroup) -> list[int]:
    group.wait_ready(timeout_s=90)
    assert group.gang is not None
    return [beat.process.pid for beat in group.gang.heartbeats()]


def lose_rank(group: ReplicaGroup, rank: int, how: int) -> GangFailedError:
    """Sends a rank this signal when the first block of a video is there; returns what the consumer is told."""
    victim = pids(group)[rank]
    blocks = source_of(group).frames(LONG, is_cancelled=lambda: False)
    next(blocks)
    os.kill(victim, how)
    with pytest.raises(GangFailedError) as caught:
        list(blocks)
    return caught.value


@pytest.fixture(scope="module", name="three")
def _three(start_group: StartGroup) -> ReplicaGroup:
    """One rank of each role; each failure is the past of the next one."""
    return start_group("stages=2,vae=1")


@pytest.mark.parametrize(("rank", "role"), [(0, "stage 0"), (1, "stage 1"), (2, "vae 0")])
def test_a_rank_of_each_role_that_dies_is_named_and_the_next_video_is_right(
    alone: ReplicaGroup, three: ReplicaGroup, rank: int, role: str
) -> None:
    error = lose_rank(three, rank, signal.SIGKILL)
    assert f"rank {rank} ({role}" in error.message
    assert digest(frames(three)) == digest(frames(alone))


def test_a_rank_that_freezes_is_named_and_the_next_video_is_right(alone: ReplicaGroup, three: ReplicaGroup) -> None:
    error = lose_rank(three, 1, signal.SIGSTOP)
    assert "rank 1 (stage 1, ulysses 0) is frozen" in error.message
    assert digest(frames(three)) == digest(frames(alone))


@pytest.mark.chaos
@pytest.mark.parametrize("layout", ["stages=2,ulysses=2,vae=1", "ulysses=2,weight_shards=2"])
def test_every_rank_may_die_or_freeze(start_group: StartGroup, layout: str) -> None:
    group = start_group(layout)
    expected = digest(frames(group))
    for how in (signal.SIGKILL, signal.SIGSTOP):
        for rank in range(ParallelLayout.parse(layout).world_size):
            assert f"rank {rank} " in lose_rank(group, rank, how).message
            assert digest(frames(group)) == expected
    group.stop()


def test_an_exception_of_the_program_ends_the_gang_and_the_next_video_is_right(
    alone: ReplicaGroup, three: ReplicaGroup
) -> None:
    silent = replace(TASK, speech=np.zeros(10, dtype=np.float32))
    with pytest.raises(GangFailedError, match=r"rank 0 \(stage 0, ulysses 0\) raised.*too short"):
        frames(three, silent)
    assert digest(frames(three)) == digest(frames(alone))


def test_a_checkpoint_that_is_not_there_is_the_users_error(cluster: LocalCluster, tmp_path: Path) -> None:
    assert cluster.address
    layout = ParallelLayout(stages=2)
    spec = gang_spec(layout, checkpoint=str(tmp_path / "ckpt"), cache_dir=tmp_path, limits=LIMITS, threads_per_rank=1)
    bundles = GroupBundles(layout.world_size, cpus_per_rank=0.1, gpus_per_rank=0.5, leader_cpus=0.1)
    group = ReplicaGroup("nowhere", spec, bundles, timeouts=TIMEOUTS)
    group.start()
    try:
        with pytest.raises(CheckpointError, match="ckpt"):
            frames(group)
    finally:
        group.stop()


def test_ranks_compute_in_the_environment_that_the_user_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:cudaMallocAsync")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    spec = gang_spec(ParallelLayout(), checkpoint="tiny", cache_dir=tmp_path, limits=LIMITS, threads_per_rank=1)
    assert spec.env == {"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync", "GOMP_SPINCOUNT": "20000"}


@pytest.mark.parametrize(
    ("detail", "remedy"),
    [
        ("NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error", "NCCL_DEBUG=INFO"),
        ("Error while creating shared memory segment /dev/shm/nccl-x: No space left on device", "--shm-size"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "--size"),
        ("[Errno 98] Address already in use", "ss -ltnp"),
        ("its process is gone: killed by signal 9", "memory"),
        ("something that nobody has met", "look at the log"),
    ],
)
def test_a_failed_rank_is_told_with_what_to_do(detail: str, remedy: str) -> None:
    failure = RankFailedError(
        FailureKind.EXCEPTION, rank=1, role="stage 1, ulysses 0", detail=detail, remedy="look at the log"
    )
    told = as_avatar_error(failure)
    assert isinstance(told, GangFailedError)
    assert told.message == f"rank 1 (stage 1, ulysses 0) raised: {detail}"
    assert remedy in told.remedy


def failed_by(cause: AvatarError) -> RankFailedError:
    return RankFailedError(FailureKind.EXCEPTION, rank=0, role="source", detail="x", remedy="y", cause=cause)


@pytest.mark.parametrize("kind", [CheckpointError, InvalidRequestError])
def test_what_the_program_tells_the_user_stays_what_it_is(kind: type[AvatarError]) -> None:
    """Also where a file or a value is called like a failure that is known."""
    cause = kind('"NCCL error/Bus error" lacks a file', remedy="download it again", param="checkpoint")
    told = as_avatar_error(failed_by(cause))
    assert told is cause
    assert told.remedy == "download it again"
    assert told.exit_code == 2


def test_what_a_library_says_between_ranks_is_told_with_what_to_do() -> None:
    cause = RankError("rank 0 did not meet: Unable to find address for: eth7", remedy="look at the log")
    told = as_avatar_error(failed_by(cause))
    assert told is cause
    assert "GLOO_SOCKET_IFNAME" in told.remedy
    unknown = RankError("rank 0 did not meet: nobody knows why", remedy="look at the log")
    assert as_avatar_error(failed_by(unknown)).remedy == "look at the log"


def test_the_limit_follows_the_blocks_seen_but_the_first() -> None:
    times = BlockTimes(GangLimits(first_block_s=600, least_progress_s=30, progress_factor=10))
    assert times.limit_s(0) == 600
    times.seconds += [60.0]
    assert times.limit_s(1) == 600
    times.seconds += [1.0, 2.0]
    assert times.limit_s(3) == 30
    times.seconds += [9.0]
    assert times.limit_s(4) == 40


@pytest.mark.parametrize("layout", ["vae=1", "ulysses=2"])
def test_a_consumer_that_sleeps_longer_than_every_deadline_gets_its_video(
    cluster: LocalCluster, small_checkpoint: Path, layout: str
) -> None:
    assert cluster.address
    parsed = ParallelLayout.parse(layout)
    hasty = GangLimits(first_block_s=60, message_s=3)
    spec = gang_spec(
        parsed, checkpoint=str(small_checkpoint), cache_dir=Path("unused"), limits=hasty, threads_per_rank=1
    )
    bundles = GroupBundles(parsed.world_size, cpus_per_rank=0.1, gpus_per_rank=0.5, leader_cpus=0.1)
    with ReplicaGroup(f"hasty {layout}", spec, bundles, timeouts=TIMEOUTS) as group:
        blocks = source_of(group).frames(LONG, is_cancelled=lambda: False)
        made = [next(blocks)]
        time.sleep(4 * hasty.message_s)  # what is tested is that time passes
        made += blocks
    assert [block.index for block in made] == list(range(20))


def test_a_gpu_of_this_machine_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> NoGpus:
        raise GpuReadError("GPU 0 (H100): NVML says: GPU is lost")

    monkeypatch.setattr(local_gang, "local_gpus", lost)
    with pytest.raises(GangFailedError, match=r"GPU 0 \(H100\): NVML says: GPU is lost; restart the machine"):
        usable_gpus(None)
