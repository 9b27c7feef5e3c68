"""A driver that is killed leaves nothing behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import ray

from ray_cluster.local import LocalCluster
from tests.ray_cluster.conftest import eventually
from tests.ray_cluster.drivers import driver


def with_all_children(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def are_gone(processes: list[psutil.Process]) -> bool:
    return not [process for process in processes if process.is_running() and process.status() != "zombie"]


def test_on_a_shared_cluster_no_actor_and_no_placement_group_is_left(cluster: LocalCluster, tmp_path: Path) -> None:
    state: Any = ray._private.state.state
    with driver(tmp_path, shared=cluster) as (process, told):
        ranks = [psutil.Process(pid) for pid in told["pids"]]
        os.kill(told["pids"][0], signal.SIGSTOP)
        assert live_placement_groups(state) > 0
        process.kill()
    eventually(lambda: are_gone(ranks))
    eventually(lambda: live_placement_groups(state) == 0)
    actors = [actor for actor in state.actor_table(None).values() if actor["JobID"] == told["job"]]
    assert [actor["State"] for actor in actors] == ["DEAD", "DEAD"]


def live_placement_groups(state: Any) -> int:
    return sum(group["state"] != "REMOVED" for group in state.placement_group_table().values())


def test_a_private_cluster_ends_with_its_driver(tmp_path: Path) -> None:
    with driver(tmp_path) as (process, told):
        everything = with_all_children(psutil.Process(process.pid))
        assert {"gcs_server", "raylet"} <= {one.name() for one in everything}
        assert set(told["pids"]) <= {one.pid for one in everything}
        os.kill(told["pids"][1], signal.SIGSTOP)
        process.kill()
    eventually(lambda: are_gone(everything))
    eventually(lambda: not Path(told["folder"]).exists())
