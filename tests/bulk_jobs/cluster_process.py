"""A cluster that outlives drivers, in a process of its own: `python -m tests.bulk_jobs.cluster_process`.

It tells how to join it; then, for each line that it reads, what is on it. It ends with its standard input.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import psutil
import ray
from ray._private.internal_api import memory_summary

from ray_cluster.local import MIB, local_cluster

OF_RAY_DATA = ("_StatsActor", "ActorLocationTracker", "_AutoscalingCoordinatorActor")
"""What Ray Data keeps once per cluster, for whoever uses it; it takes no resources and stays with the cluster."""


def main() -> None:
    with local_cluster(num_cpus=4, num_gpus=0, object_store_bytes=256 * MIB) as started:
        say({"address": started.address, "environment": dict(started.environment)})
        for _ in sys.stdin:
            ranks = rank_pids()
            left = [*live_actors(), *live_placement_groups(), *(f"rank {pid}" for pid in ranks)]
            say({"left": left, "ranks": ranks, "plasma_bytes": plasma_bytes(started.address)})


def say(told: dict[str, Any]) -> None:
    sys.stdout.write(f"told: {json.dumps(told)}\n")
    sys.stdout.flush()


def live_actors() -> list[str]:
    """Returns the classes of actors that are not dead, but for one of each of Ray Data's own."""
    state: Any = ray._private.state.state
    actors = [actor["ActorClassName"] for actor in state.actor_table(None).values() if actor["State"] != "DEAD"]
    for shared in OF_RAY_DATA:
        if shared in actors:
            actors.remove(shared)
    return actors


def live_placement_groups() -> list[str]:
    state: Any = ray._private.state.state
    groups = state.placement_group_table().values()
    return [f"placement group {group['name']}" for group in groups if group["state"] != "REMOVED"]


def rank_pids() -> list[int]:
    """Returns the processes of rank actors: Ray names its processes."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith("ray::RankActor"):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def plasma_bytes(address: str) -> float:
    """Returns what the object store holds now."""
    (mib,) = re.findall(r"Plasma memory usage (\d+) MiB", memory_summary(address, stats_only=True))
    return float(mib) * MIB


if __name__ == "__main__":
    main()
