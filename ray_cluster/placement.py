"""Gets the bundles of a group a place on the cluster, or says what is missing where."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray._private.state
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from ray_cluster.bundles import GroupBundles, Strategy, rank_order
from ray_cluster.errors import GangAbandonedError, PlacementError

log = logging.getLogger(__name__)

POLL_S = 0.25


@dataclass(frozen=True)
class NodeResources:
    """What a node has in all, and what of it is free."""

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]


@dataclass(frozen=True)
class Placement:
    """A placement group that holds the bundles of a group."""

    group: PlacementGroup
    bundles: GroupBundles

    def rank_bundles(self) -> tuple[int, ...]:
        """Returns the bundle of every rank, as the nodes are now: Ray moves bundles off a node that it lost."""
        node_of_bundle = _table(self.group)["bundles_to_node_id"]
        if len(node_of_bundle) != self.bundles.num_ranks + 1 or not all(node_of_bundle.values()):
            raise PlacementError(
                f"only bundles {sorted(node_of_bundle)} of {self.bundles.num_ranks + 1} have a place: a node was lost",
                can_never_fit=False,
                remedy="wait until all have one again",
            )
        return rank_order(node_of_bundle)

    def wait(self, *, timeout_s: float, is_abandoned: Callable[[], bool] = lambda: False) -> None:
        """Waits until every bundle has its place; PlacementError says what is missing where."""
        deadline = time.monotonic() + timeout_s
        while not (self.group.wait(POLL_S) and _table(self.group)["state"] == "CREATED"):
            if is_abandoned():
                raise GangAbandonedError("the placement is no longer wanted", remedy="start the group again")
            if time.monotonic() >= deadline:
                raise self._error(timeout_s)

    def _error(self, timeout_s: float) -> PlacementError:
        bundles, strategy = self.bundles.as_list(), self.bundles.strategy
        nodes = live_nodes()
        can_never_fit = not fits(bundles, strategy, [node.total for node in nodes])
        return PlacementError(
            f"no place within {timeout_s:g} s for {explain(bundles, strategy, nodes)}",
            can_never_fit=can_never_fit,
            remedy="use fewer ranks or smaller bundles, or add a node that holds them"
            if can_never_fit
            else "wait until others end, stop them, or allow more time",
        )


@contextmanager
def create_placement(
    bundles: GroupBundles, *, name: str, timeout_s: float, is_abandoned: Callable[[], bool] = lambda: False
) -> Iterator[Placement]:
    """Takes the bundles from the cluster and gives them back at the end, also after an error.

    They belong to the calling driver: Ray frees them when it dies.
    """
    unique = f"{name}-{secrets.token_hex(4)}"  # Ray refuses a name until the group that had it is gone
    group = placement_group(bundles.as_list(), strategy=bundles.strategy.value, name=unique)
    placement = Placement(group, bundles)
    start = time.monotonic()
    try:
        placement.wait(timeout_s=timeout_s, is_abandoned=is_abandoned)
        log.info("group placed", extra={"group": name, "seconds": round(time.monotonic() - start, 3)})
        yield placement
    finally:
        remove_placement_group(group)


@contextmanager
def adopt_placement(bundles: GroupBundles) -> Iterator[Placement]:
    """Takes the placement group in which this process runs, as the leader on bundle 0; whoever made it removes it."""
    group = get_current_placement_group()
    if group is None:
        raise PlacementError(
            "this process runs in no placement group, so there is none to adopt",
            can_never_fit=False,
            remedy="start it with placement_group_bundles, or create a placement",
        )
    found = [{name: amount for name, amount in bundle.items() if amount} for bundle in group.bundle_specs]
    if found != bundles.as_list():
        raise PlacementError(
            f"the placement group has bundles {found}, not {bundles.as_list()}",
            can_never_fit=True,
            remedy="deploy with the bundles of this group",
        )
    yield Placement(group, bundles)


def live_nodes() -> list[NodeResources]:
    """Returns the nodes that are alive."""
    state: Any = ray._private.state
    free = state.available_resources_per_node()
    return [
        NodeResources(node["NodeManagerAddress"], node["Resources"], free.get(node["NodeID"], {}))
        for node in state.nodes()
        if node["Alive"]
    ]


def explain(bundles: Sequence[Mapping[str, float]], strategy: Strategy, nodes: Sequence[NodeResources]) -> str:
    """Returns why the bundles have no place: what each node lacks, and whether waiting can help.

    What a node lacks is told for all bundles together with STRICT_PACK, else for the largest one.
    """
    if not nodes:
        return f"{_shown_bundles(bundles, strategy)}: the cluster has no live node"
    wanted = _sum(bundles) if strategy is Strategy.STRICT_PACK else max(bundles, key=_size)
    can_ever_fit = fits(bundles, strategy, [node.total for node in nodes])
    verdict = "others hold what it needs" if can_ever_fit else "this cluster can never hold it"
    listed = "; ".join(_shown_node(node, wanted, can_ever_fit=can_ever_fit) for node in nodes)
    return f"{_shown_bundles(bundles, strategy)}: {verdict}: {listed}"


def fits(bundles: Sequence[Mapping[str, float]], strategy: Strategy, capacities: Sequence[Mapping[str, float]]) -> bool:
    """Returns whether nodes of these capacities hold the bundles; exact for STRICT_PACK and for equal ranks."""
    if strategy is Strategy.STRICT_PACK:
        wanted = _sum(bundles)
        return any(not _lacks(wanted, capacity) for capacity in capacities)
    left = [dict(capacity) for capacity in capacities]
    for bundle in sorted(bundles, key=_size, reverse=True):
        home = next((capacity for capacity in left if not _lacks(bundle, capacity)), None)
        if home is None:
            return False
        for name, amount in bundle.items():
            home[name] -= amount
    return True


def _table(group: PlacementGroup) -> dict[str, Any]:
    table: dict[str, Any] = placement_group_table(group)
    return table


def _sum(bundles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for bundle in bundles for name in bundle)
    return {name: round(sum(bundle.get(name, 0.0) for bundle in bundles), 4) for name in names}


def _size(bundle: Mapping[str, float]) -> tuple[float, float]:
    return bundle.get("GPU", 0.0), bundle.get("CPU", 0.0)


def _lacks(wanted: Mapping[str, float], capacity: Mapping[str, float]) -> dict[str, float]:
    missing = {name: round(amount - capacity.get(name, 0.0), 4) for name, amount in wanted.items()}
    return {name: amount for name, amount in missing.items() if amount > 0}


def _shown_bundles(bundles: Sequence[Mapping[str, float]], strategy: Strategy) -> str:
    largest = _shown(max(bundles, key=_size))
    return f"{len(bundles)} bundles ({strategy.value}, {_shown(_sum(bundles))} in all, the largest {largest})"


def _shown_node(node: NodeResources, wanted: Mapping[str, float], *, can_ever_fit: bool) -> str:
    capacity = node.free if can_ever_fit else node.total
    missing = _lacks(wanted, capacity)
    has = _shown({name: capacity.get(name, 0.0) for name in wanted})
    lack = f"lacks {_shown(missing)}" if missing else "lacks nothing for one bundle"
    return f"node {node.name} has {has} {'free' if can_ever_fit else 'in all'} and {lack}"


def _shown(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
