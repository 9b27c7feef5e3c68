"""Placement: what is said when there is no place, and that nothing is kept."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_cluster.bundles import GroupBundles, Strategy
from ray_cluster.errors import PlacementError
from ray_cluster.placement import NodeResources, adopt_placement, create_placement, explain, fits
from tests.ray_cluster.conftest import bundles, eventually, spec

FOUR = GroupBundles(4, gpus_per_rank=1, cpus_per_rank=1, leader_cpus=1).as_list()
BIG = NodeResources("10.0.0.1", {"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 1})
SMALL = NodeResources("10.0.0.2", {"CPU": 8, "GPU": 2}, {"CPU": 2, "GPU": 2})


def test_a_group_that_only_waits_is_told_what_others_hold() -> None:
    assert explain(FOUR, Strategy.STRICT_PACK, [BIG, SMALL]) == (
        "5 bundles (STRICT_PACK, 5 CPU, 4 GPU in all, the largest 1 CPU, 1 GPU): others hold what it needs: "
        "node 10.0.0.1 has 8 CPU, 1 GPU free and lacks 3 GPU; "
        "node 10.0.0.2 has 2 CPU, 2 GPU free and lacks 3 CPU, 2 GPU"
    )


def test_a_group_that_no_node_can_hold_is_told_what_each_lacks() -> None:
    assert explain(FOUR, Strategy.STRICT_PACK, [SMALL]) == (
        "5 bundles (STRICT_PACK, 5 CPU, 4 GPU in all, the largest 1 CPU, 1 GPU): this cluster can never hold it: "
        "node 10.0.0.2 has 8 CPU, 2 GPU in all and lacks 2 GPU"
    )


def test_a_group_on_several_nodes_is_told_of_its_largest_bundle() -> None:
    told = explain(FOUR, Strategy.PACK, [SMALL, NodeResources("10.0.0.3", {"CPU": 8}, {"CPU": 8})])
    assert "can never hold it" in told
    assert "node 10.0.0.2 has 8 CPU, 2 GPU in all and lacks nothing for one bundle" in told
    assert "node 10.0.0.3 has 8 CPU, 0 GPU in all and lacks 1 GPU" in told


def test_a_cluster_without_nodes_is_named() -> None:
    assert explain(FOUR, Strategy.PACK, []).endswith("the cluster has no live node")


@pytest.mark.parametrize(
    ("strategy", "gpus_of_nodes", "fit"),
    [
        (Strategy.STRICT_PACK, [4], True),
        (Strategy.STRICT_PACK, [2, 2], False),
        (Strategy.PACK, [2, 2], True),
        (Strategy.PACK, [2, 1], False),
    ],
)
def test_what_fits(strategy: Strategy, gpus_of_nodes: list[float], fit: bool) -> None:
    assert fits(FOUR, strategy, [{"CPU": 8, "GPU": gpus} for gpus in gpus_of_nodes]) is fit


@pytest.mark.usefixtures("cluster")
def test_no_place_within_the_limit_is_an_error_and_the_request_is_withdrawn() -> None:
    with (
        pytest.raises(PlacementError, match=r"no place within 0\.3 s .* can never hold it.*lacks 1 GPU") as caught,
        create_placement(bundles(9), name="wide", timeout_s=0.3),
    ):
        pass
    assert caught.value.can_never_fit
    assert "add a node" in caught.value.remedy
    eventually(lambda: live_groups("wide") == 0)


@pytest.mark.usefixtures("cluster")
def test_a_group_that_waits_for_others_says_so_and_leaves_no_bundle_behind() -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(create_placement(bundles(5), name="first", timeout_s=10))
        with pytest.raises(PlacementError, match=r"others hold what it needs: .* 3 GPU free and lacks 2 GPU") as caught:
            stack.enter_context(create_placement(bundles(5), name="second", timeout_s=0.3))
        assert not caught.value.can_never_fit
    with create_placement(bundles(8), name="third", timeout_s=10):
        pass


@pytest.mark.usefixtures("cluster")
def test_an_error_inside_gives_the_place_back() -> None:
    with pytest.raises(KeyError), create_placement(bundles(8), name="broken", timeout_s=10):
        raise KeyError
    with create_placement(bundles(8), name="after", timeout_s=10):
        pass


@pytest.mark.usefixtures("cluster")
def test_a_driver_has_no_placement_group_to_adopt() -> None:
    with pytest.raises(PlacementError, match="runs in no placement group"), adopt_placement(bundles(1)):
        pass


@pytest.mark.usefixtures("cluster")
def test_a_leader_adopts_the_placement_group_it_runs_in(tmp_path: Any) -> None:
    wanted = bundles(2)
    with create_placement(wanted, name="serve", timeout_s=10) as placement:
        pinned = PlacementGroupSchedulingStrategy(placement.group, placement_group_bundle_index=0)
        as_remote: Any = ray.remote(num_cpus=0.1, scheduling_strategy=pinned)
        leader = as_remote(Leader).remote()
        assert ray.get(leader.run.remote(wanted, spec(tmp_path)), timeout=60) == list(range(5))
        with pytest.raises(PlacementError, match=r"not .*'GPU': 1"):
            ray.get(leader.run.remote(bundles(3), spec(tmp_path)), timeout=60)
        assert live_groups("serve") == 1
        ray.kill(leader)


class Leader:
    """What a Serve replica is to its group."""

    def run(self, wanted: GroupBundles, program: Any) -> list[int]:
        from ray_cluster.replica_group import ReplicaGroup
        from tests.ray_cluster.conftest import TIMEOUTS, in_time
        from tests.ray_cluster.fake_program import FakeTask

        with ReplicaGroup("led", program, wanted, adopts_placement=True, timeouts=TIMEOUTS) as group:
            return [item.index for item in group.run(FakeTask(5), item_limit_s=in_time)]


def live_groups(name: str) -> int:
    state: Any = ray._private.state.state
    groups = state.placement_group_table().values()
    return sum(group["name"].startswith(name) and group["state"] != "REMOVED" for group in groups)
