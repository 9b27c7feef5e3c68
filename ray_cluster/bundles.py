"""What a replica group asks of the cluster: one bundle for its leader, one for every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

LEADER_BUNDLE = 0
_TRACE = 0.001
"""Ranks are on bundles 1 .. num_ranks."""


class Strategy(Enum):
    """Ray's words: all bundles on one node, or on as few as possible."""

    STRICT_PACK = "STRICT_PACK"
    PACK = "PACK"


@dataclass(frozen=True)
class GroupBundles:
    """The bundles of one replica group. GPUs may be shares of one, and logical.

    STRICT_PACK is for groups that fit into a node; PACK for wider ones. `node_resource` is a custom resource of the
    nodes on which the group may be: every bundle takes a trace of it.
    """

    num_ranks: int
    cpus_per_rank: float = 1.0
    gpus_per_rank: float = 1.0
    leader_cpus: float = 1.0
    strategy: Strategy = Strategy.STRICT_PACK
    node_resource: str | None = None

    def __post_init__(self) -> None:
        if self.num_ranks < 1:
            raise ValueError(f"num_ranks {self.num_ranks} makes no gang; give at least 1")
        for name in ("cpus_per_rank", "gpus_per_rank", "leader_cpus"):
            value = getattr(self, name)
            if value < 0 or abs(value * 10_000 - round(value * 10_000)) > 1e-6:
                raise ValueError(f"{name} {value} is not a share that Ray counts; give 0 or more, in steps of 0.0001")
        if self.gpus_per_rank > 1 and self.gpus_per_rank != int(self.gpus_per_rank):
            raise ValueError(f"gpus_per_rank {self.gpus_per_rank} is more than one GPU and no whole number; round it")
        if self.leader_cpus == 0:
            raise ValueError("leader_cpus 0 makes an empty bundle, which Ray refuses; give at least 0.0001")
        if self.cpus_per_rank == 0 and self.gpus_per_rank == 0:
            raise ValueError("a rank without CPU and GPU makes an empty bundle, which Ray refuses; give it either")

    def as_list(self) -> list[dict[str, float]]:
        """Returns the bundles in Ray's form, the leader's first."""
        there = {} if self.node_resource is None else {self.node_resource: _TRACE}
        rank = {"CPU": self.cpus_per_rank, "GPU": self.gpus_per_rank}
        rank = {name: amount for name, amount in rank.items() if amount > 0} | there
        return [{"CPU": self.leader_cpus, **there}, *(dict(rank) for _ in range(self.num_ranks))]

    def total(self) -> dict[str, float]:
        """Returns what the group takes in all, by resource."""
        total: dict[str, float] = {}
        for bundle in self.as_list():
            for name, amount in bundle.items():
                total[name] = round(total.get(name, 0.0) + amount, 4)
        return total


def rank_order(node_of_bundle: Mapping[int, str]) -> tuple[int, ...]:
    """Returns the rank bundles in rank order: neighbours share a node, the leader's node comes first.

    `node_of_bundle` says on which node each bundle is, the leader's too.
    """
    nodes = [node_of_bundle[bundle] for bundle in sorted(node_of_bundle)]
    turn = {node: turn for turn, node in enumerate(dict.fromkeys(nodes))}
    ranks = (bundle for bundle in node_of_bundle if bundle != LEADER_BUNDLE)
    return tuple(sorted(ranks, key=lambda bundle: (turn[node_of_bundle[bundle]], bundle)))
