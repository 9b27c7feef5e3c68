"""Replica groups of the real program with a small checkpoint, on the Ray of the test run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ray_cluster.bundles import GroupBundles
from ray_cluster.gang import GangTimeouts
from ray_cluster.local import LocalCluster
from ray_cluster.replica_group import ReplicaGroup
from ray_cluster.restart_budget import RestartPolicy
from serve_app.deployments.gang_source import gang_spec
from serve_app.planning.layout import ParallelLayout
from serve_app.schemas.config import GangLimits

TIMEOUTS = GangTimeouts(placement_s=20, start_s=90, heartbeat_s=3, drain_s=20, stop_s=5, kill_s=5)
RESTARTS = RestartPolicy(max_restarts=100, backoff_s=0.05, max_backoff_s=0.05)

LIMITS = GangLimits(start_s=90, first_block_s=60, least_progress_s=10)

StartGroup = Callable[[str], ReplicaGroup]


@pytest.fixture(scope="module")
def start_group(cluster: LocalCluster, small_checkpoint: Path) -> Iterator[StartGroup]:
    """Starts groups, by layout, that end with the test file."""
    assert cluster.address
    with ExitStack() as stack:

        def start(layout: str) -> ReplicaGroup:
            parsed = ParallelLayout.parse(layout)
            spec = gang_spec(
                parsed, checkpoint=str(small_checkpoint), cache_dir=Path("unused"), limits=LIMITS, threads_per_rank=1
            )
            bundles = GroupBundles(parsed.world_size, cpus_per_rank=0.1, gpus_per_rank=0.5, leader_cpus=0.1)
            group = ReplicaGroup(layout, spec, bundles, timeouts=TIMEOUTS, restarts=RESTARTS)
            return stack.enter_context(group)

        yield start
