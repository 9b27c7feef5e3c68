"""What every node of the cluster has: processors, memory and GPUs, measured on the node itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_cluster.nvml import GpuSample, NoGpus, open_gpus


@dataclass(frozen=True)
class Gpu:
    """One GPU. `total_bytes` is what programs can use, as torch tells it, not the larger figure of `nvidia-smi`."""

    index: int
    kind: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class NodeInventory:
    """One node. `logical_gpus` is what Ray gives away there, `gpus` what NVML saw; they may differ, in tests above all.

    `reason_no_gpus` is empty exactly when there are GPUs.
    """

    node_id: str
    address: str
    cpus: float
    logical_gpus: float
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    reason_no_gpus: str


@dataclass(frozen=True)
class MissingNode:
    """A node that could not be measured, and why."""

    node_id: str
    address: str
    reason: str


@dataclass(frozen=True)
class ClusterInventory:
    """The nodes that were measured, and those that are known to Ray but were not."""

    nodes: tuple[NodeInventory, ...]
    missing: tuple[MissingNode, ...]


def cluster_inventory(*, timeout_s: float) -> ClusterInventory:
    """Measures all nodes of the cluster that this process is connected to, at once.

    A node that is dead, dies meanwhile or does not answer within `timeout_s` is named under `missing`. Nodes that left
    in good order are not told. The measuring task takes no processor, so that it runs on a full node too.
    """
    import ray  # here and below, so that one machine is measured without Ray

    nodes: list[Mapping[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = {node["NodeID"]: node for node in nodes if node["Alive"]}
    dead = [_missing(node, _cause_of_death(node)) for node in nodes if _died(node)]
    measured = [_collect(alive[node_id], found) for node_id, found in _measure(list(alive), timeout_s).items()]
    return ClusterInventory(
        nodes=tuple(node for node in measured if isinstance(node, NodeInventory)),
        missing=(*(node for node in measured if isinstance(node, MissingNode)), *dead),
    )


def local_gpus() -> tuple[Gpu, ...] | NoGpus:
    """Returns the GPUs of this machine, without Ray; raises GpuReadError when one is there but does not answer."""
    opened = open_gpus()
    if isinstance(opened, NoGpus):
        return opened
    with opened:
        return tuple(map(_gpu, opened.sample()))


def _gpu(sample: GpuSample) -> Gpu:
    return Gpu(
        index=sample.index, kind=gpu_kind(sample.name), total_bytes=sample.total_bytes, free_bytes=sample.free_bytes
    )


def _measure(node_ids: list[str], timeout_s: float) -> dict[str, tuple[Gpu, ...] | NoGpus | str]:
    """Returns by node what was found there, or a sentence on why nothing was."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    measure = ray.remote(num_cpus=0, max_retries=0)(local_gpus)
    asked = {
        node_id: measure.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()
        for node_id in node_ids
    }
    answered, silent = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    for task in silent:
        ray.cancel(task, force=True)
    return {
        node_id: _answer(task) if task in answered else f"did not answer within {timeout_s:g} s"
        for node_id, task in asked.items()
    }


def _answer(task: Any) -> tuple[Gpu, ...] | NoGpus | str:  # noqa: ANN401  (Ray's reference)
    import ray

    try:
        answer: tuple[Gpu, ...] | NoGpus = ray.get(task, timeout=0)
    except ray.exceptions.RayTaskError as error:  # the measuring itself
        return f"could not be measured: {error.cause}"
    except ray.exceptions.RayError as error:  # the node or the worker process died
        return f"could not be measured: {type(error).__name__}: {str(error).splitlines()[0]}"
    return answer


def _collect(node: Mapping[str, Any], found: tuple[Gpu, ...] | NoGpus | str) -> NodeInventory | MissingNode:
    if isinstance(found, str):
        return _missing(node, found)
    resources = node["Resources"]
    return NodeInventory(
        node_id=node["NodeID"],
        address=node["NodeManagerAddress"],
        cpus=resources.get("CPU", 0.0),
        logical_gpus=resources.get("GPU", 0.0),
        memory_bytes=int(resources.get("memory", 0)),
        gpus=() if isinstance(found, NoGpus) else found,
        reason_no_gpus=found.reason if isinstance(found, NoGpus) else "",
    )


def _missing(node: Mapping[str, Any], reason: str) -> MissingNode:
    return MissingNode(node_id=node["NodeID"], address=node["NodeManagerAddress"], reason=reason)


_LEFT_IN_GOOD_ORDER = (1, 3, 4)  # Ray's NodeDeathInfo: expected termination, drained by the autoscaler (two ways)


def _died(node: Mapping[str, Any]) -> bool:
    return not node["Alive"] and node["DeathReason"] not in _LEFT_IN_GOOD_ORDER


def _cause_of_death(node: Mapping[str, Any]) -> str:
    return f"is dead: {node['DeathReasonMessage'] or 'Ray names no cause'}"


_UNSPOKEN = re.compile(r"NVIDIA|Tesla|GeForce|Quadro|GPU|Generation|Edition|SXM\d*|HBM\d*e?", re.IGNORECASE)
_SIZE = re.compile(r"\d+GB", re.IGNORECASE)
_ONE_SIZE = (("H100", "80GB"), ("H800", "80GB"))  # the size that almost all of them have goes without saying


def gpu_kind(product_name: str) -> str:
    """Returns the short name of a GPU from NVML's product name: "NVIDIA A100 80GB PCIe" is an "A100-80GB-PCIe".

    What makes cards differently large or fast stays in the name; SXM, the common form of those that have two, does not.
    """
    words = [word for word in re.split(r"[\s-]+", product_name) if word and not _UNSPOKEN.fullmatch(word)]
    forms = ["PCIe" for word in words if word.lower() == "pcie"]
    sizes = [word for word in words if _SIZE.fullmatch(word) and (words[0], word) not in _ONE_SIZE]
    names = [word for word in words if not _SIZE.fullmatch(word) and word.lower() != "pcie"]
    kind = "-".join([*names, *sizes, *forms])
    kind = re.sub(r"\b(RTX|GTX|PRO)-(?=[A-Z]*\d|PRO)", r"\1", kind)
    return re.sub(r"(?<=\d)-(Ti|SUPER|D)\b", r"\1", kind) or product_name
