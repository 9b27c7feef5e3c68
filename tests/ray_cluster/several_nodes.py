"""A gang wider than a node, on a cluster of several raylets. Run as `python -m tests.ray_cluster.several_nodes`."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from ray_cluster.bundles import Strategy
from ray_cluster.errors import FailureKind, RankFailedError
from ray_cluster.local import MIB
from ray_cluster.processes import is_alive
from ray_cluster.replica_group import ReplicaGroup
from tests.ray_cluster.conftest import TIMEOUTS, bundles, eventually, in_time, spec
from tests.ray_cluster.fake_program import FakeTask

NODE = {"num_cpus": 1, "num_gpus": 2, "object_store_memory": 80 * MIB}


def main(folder: Path) -> None:
    """Stops a rank on another node, then loses that node; the group mends itself both times."""
    logging.basicConfig(level=logging.INFO)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_gpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(**NODE), cluster.add_node(**NODE)]
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    timeouts = replace(TIMEOUTS, placement_s=2)
    wide = replace(bundles(4), strategy=Strategy.PACK)
    try:
        with ReplicaGroup("wide", spec(folder), wide, timeouts=timeouts) as group:
            a_stopped_rank_ends_on_its_own_node(group)
            cluster.remove_node(nodes[1])
            failure = eventually(lambda: group.gang is None)
            assert failure
            cluster.add_node(**NODE)
            assert len(list(group.run(FakeTask(5), item_limit_s=in_time))) == 5
    finally:
        ray.shutdown()
        cluster.shutdown()


def a_stopped_rank_ends_on_its_own_node(group: ReplicaGroup) -> None:
    gang = group.gang
    assert gang is not None
    beats = eventually(lambda: gang.heartbeats() if len(gang.heartbeats()) == 4 else None)
    homes = [beat.process.node_id for beat in beats]
    assert homes[0] == homes[1] != homes[2] == homes[3], "neighbours share a node"
    assert ray.get_runtime_context().get_node_id() not in homes, "the driver is on neither"
    with pytest.raises(RankFailedError) as caught:
        list(group.run(FakeTask(8, acts={(3, 3): "stop"}), item_limit_s=in_time))
    assert (caught.value.kind, caught.value.rank) == (FailureKind.FROZEN, 3)
    assert not any(is_alive(beat.process) for beat in beats)
    assert len(list(group.run(FakeTask(5), item_limit_s=in_time))) == 5


if __name__ == "__main__":
    main(Path(sys.argv[1]))
