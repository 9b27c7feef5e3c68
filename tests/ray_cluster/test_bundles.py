"""Bundles: what is asked of Ray, what is refused, and which rank comes where."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ray_cluster.bundles import GroupBundles, rank_order


def test_the_leader_comes_first_and_every_rank_has_its_bundle() -> None:
    bundles = GroupBundles(2, cpus_per_rank=2, gpus_per_rank=0.5, leader_cpus=0.1)
    assert bundles.as_list() == [{"CPU": 0.1}, {"CPU": 2, "GPU": 0.5}, {"CPU": 2, "GPU": 0.5}]
    assert bundles.total() == {"CPU": 4.1, "GPU": 1.0}


def test_a_resource_that_a_rank_does_not_take_is_not_asked_for() -> None:
    assert GroupBundles(1, gpus_per_rank=0).as_list()[1] == {"CPU": 1.0}


def test_every_bundle_is_bound_to_the_nodes_that_are_named() -> None:
    bundles = GroupBundles(1, gpus_per_rank=0, node_resource="cards-of-80")
    assert bundles.as_list() == [{"CPU": 1.0, "cards-of-80": 0.001}] * 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_ranks": 0}, "num_ranks 0 makes no gang"),
        ({"cpus_per_rank": -1}, "cpus_per_rank -1 is not a share"),
        ({"gpus_per_rank": 0.00001}, "gpus_per_rank 1e-05 is not a share"),
        ({"gpus_per_rank": 1.5}, "gpus_per_rank 1.5 is more than one GPU and no whole number"),
        ({"leader_cpus": 0}, "leader_cpus 0 makes an empty bundle"),
        ({"cpus_per_rank": 0, "gpus_per_rank": 0}, "a rank without CPU and GPU"),
    ],
)
def test_what_ray_cannot_hold_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        GroupBundles(**{"num_ranks": 1, **fields})


def test_ranks_that_are_neighbours_share_a_node_and_the_leader_is_near_rank_0() -> None:
    node_of_bundle = {0: "b", 1: "a", 2: "b", 3: "c", 4: "a", 5: "b"}
    assert rank_order(node_of_bundle) == (2, 5, 1, 4, 3)
