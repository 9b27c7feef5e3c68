"""The nodes of a cluster and their GPUs, measured where they are."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from ray_cluster import inventory
from ray_cluster.inventory import Gpu, cluster_inventory, gpu_kind, local_gpus
from ray_cluster.nvml import open_gpus
from tests.ray_cluster.fake_nvml import MIB, FakeNvml

TIMEOUT_S = 60.0

KINDS = {
    "NVIDIA GeForce RTX 4090": "RTX4090",
    "NVIDIA GeForce RTX 4090 D": "RTX4090D",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "RTX4090-Laptop",
    "NVIDIA GeForce RTX 3080 Ti": "RTX3080Ti",
    "NVIDIA GeForce RTX 5090": "RTX5090",
    "NVIDIA A100-SXM4-80GB": "A100-80GB",
    "NVIDIA A100 80GB PCIe": "A100-80GB-PCIe",
    "NVIDIA A100-PCIE-40GB": "A100-40GB-PCIe",
    "A100-SXM4-40GB": "A100-40GB",
    "NVIDIA A800-SXM4-80GB": "A800-80GB",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 96GB HBM3": "H100-96GB",
    "NVIDIA H100 PCIe": "H100-PCIe",
    "NVIDIA H100 NVL": "H100-NVL",
    "NVIDIA H200": "H200",
    "NVIDIA H800": "H800",
    "NVIDIA H20": "H20",
    "NVIDIA B200": "B200",
    "NVIDIA L40S": "L40S",
    "NVIDIA L4": "L4",
    "NVIDIA A10G": "A10G",
    "Tesla V100-SXM2-16GB": "V100-16GB",
    "Tesla T4": "T4",
    "NVIDIA RTX A6000": "RTXA6000",
    "Quadro RTX 6000": "RTX6000",
    "NVIDIA RTX 6000 Ada Generation": "RTX6000-Ada",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTXPRO6000-Blackwell-Server",
    "NVIDIA TITAN RTX": "TITAN-RTX",
    "NVIDIA": "NVIDIA",
    "": "",
}


@pytest.mark.parametrize(("product_name", "kind"), KINDS.items())
def test_a_gpu_has_a_short_name(product_name: str, kind: str) -> None:
    assert gpu_kind(product_name) == kind


def test_the_gpus_of_this_machine_are_told_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(names=("NVIDIA GeForce RTX 4090",))
    monkeypatch.setattr(inventory, "open_gpus", lambda: open_gpus(nvml))
    assert local_gpus() == (Gpu(index=0, kind="RTX4090", total_bytes=24217 * MIB, free_bytes=23193 * MIB),)
    assert nvml.num_open == 0


@pytest.mark.usefixtures("cluster")
def test_every_node_is_measured_even_when_it_is_full() -> None:
    group = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    assert group.wait(TIMEOUT_S)
    found = cluster_inventory(timeout_s=TIMEOUT_S)
    remove_placement_group(group)
    (node,) = found.nodes
    assert found.missing == ()
    assert (node.node_id, node.address) == (ray.nodes()[0]["NodeID"], ray.nodes()[0]["NodeManagerAddress"])
    assert node.cpus > 0
    assert node.memory_bytes > 0
    assert bool(node.gpus) != bool(node.reason_no_gpus)


def ghost(*, alive: bool, death_reason: int = 0) -> dict[str, Any]:
    """A node as Ray lists it that does not exist."""
    return {
        "NodeID": "ab" * 28,
        "NodeManagerAddress": "10.0.0.9",
        "Alive": alive,
        "DeathReason": death_reason,
        "DeathReasonMessage": "health check failed" if death_reason else "",
        "Resources": {},
    }


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (ghost(alive=True), "could not be measured: TaskUnschedulableError: "),
        (ghost(alive=False, death_reason=2), "is dead: health check failed"),
        (ghost(alive=False), "is dead: Ray names no cause"),
    ],
    ids=["died a moment ago", "died", "died, nobody knows why"],
)
@pytest.mark.usefixtures("cluster")
def test_a_dead_node_is_named_beside_those_that_were_measured(
    monkeypatch: pytest.MonkeyPatch, node: dict[str, Any], reason: str
) -> None:
    nodes = [*ray.nodes(), node]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    found = cluster_inventory(timeout_s=TIMEOUT_S)
    assert len(found.nodes) == 1
    assert [(missing.node_id, missing.address) for missing in found.missing] == [("ab" * 28, "10.0.0.9")]
    assert found.missing[0].reason.startswith(reason)


@pytest.mark.usefixtures("cluster")
def test_a_node_that_left_in_good_order_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [*ray.nodes(), ghost(alive=False, death_reason=1)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert cluster_inventory(timeout_s=TIMEOUT_S).missing == ()


@pytest.mark.usefixtures("cluster")
def test_a_node_that_does_not_answer_in_time_is_named() -> None:
    found = cluster_inventory(timeout_s=0)
    assert found.nodes == ()
    assert [missing.reason for missing in found.missing] == ["did not answer within 0 s"]
