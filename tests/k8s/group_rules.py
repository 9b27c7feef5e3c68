"""Rules of where groups go: those of the service's pools, and those that a bulk job makes for itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import PurePath

from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

from ray_cluster.placement import fits
from serve_app.deployments.render_group import group_bundles
from serve_app.plan_report.plan import Plan, make_plan
from serve_app.plan_report.question import read_question
from serve_app.planning.calibration import DEFAULT_FILE, load_calibration
from serve_app.planning.feasibility import NeverFits
from serve_app.planning.hardware import GIB, Gpus, parse_gpus
from serve_app.planning.layout import ParallelLayout
from serve_app.schemas.config import AppConfig
from serve_app.schemas.service import PoolConfig
from tests.k8s import entrypoints
from tests.k8s.manifests import Manifest, Pods, RayCluster, ray_clusters, ray_pods
from tests.k8s.serve_rules import service_config

_MIB = 2**20


@dataclass(frozen=True)
class Fleet:
    """A Ray cluster, and the groups that shall find their places on it."""

    cluster: RayCluster
    pools: tuple[PoolConfig, ...]

    @property
    def homes(self) -> list[tuple[PoolConfig, Pods]]:
        """Every pool with every kind of pods that can carry one of its groups."""
        return [(pool, pods) for pool in self.pools for pods in self.cluster.pods if fits_on(pool, pods)]


def fleets(manifests: list[Manifest]) -> list[Fleet]:
    return [
        Fleet(each, service_config(manifests).pools if each.serves else (entrypoints.pool(each.owner),))
        for each in ray_clusters(manifests)
    ]


def the_head_carries_nothing(manifests: list[Manifest]) -> list[str]:
    heads = [cluster.pods[0] for cluster in ray_clusters(manifests)]
    return [
        f"{head.name}: offers {head.ray_capacity()}"
        for head in heads
        for name in ("CPU", "GPU")
        if head.ray_capacity()[name] != 0
    ]


def gpus_are_asked_for_as_kubernetes_wants(manifests: list[Manifest]) -> list[str]:
    wrong = []
    for pods in ray_pods(manifests):
        resources = pods.container["resources"]
        asked, allowed = (resources.get(part, {}).get("nvidia.com/gpu") for part in ("requests", "limits"))
        if asked != allowed:
            wrong.append(f"{pods.name}: asks for {asked} GPUs and is allowed {allowed}")
        tolerated = {toleration["key"] for toleration in pods.spec.get("tolerations", [])}
        if (pods.num_gpus > 0) != ("nvidia.com/gpu" in tolerated):
            wrong.append(f"{pods.name}: has {pods.num_gpus:g} GPUs and tolerates {sorted(tolerated)}")
    return wrong


def every_group_finds_a_place(manifests: list[Manifest]) -> list[str]:
    """All groups of all pools at once, the widest first, each whole on one pod."""
    return [problem for fleet in fleets(manifests) for problem in _homeless(fleet)]


def every_pool_has_its_own_pods(manifests: list[Manifest]) -> list[str]:
    """Bundles do not say which card they want: a pool must fit into the pods of one worker group alone."""
    wrong = []
    for fleet in fleets(manifests):
        for pool in fleet.pools:
            homes = [pods.name for each, pods in fleet.homes if each is pool]
            if len(homes) != 1:
                wrong.append(f"{pool.name}: fits on {homes}")
    return wrong


def no_card_stays_idle(manifests: list[Manifest]) -> list[str]:
    """A pod without a group costs as much as one that renders."""
    wrong = []
    for fleet in fleets(manifests):
        given = sum(pods.num_gpus * pods.count for pods in fleet.cluster.pods)
        taken = sum(group_bundles(pool).total().get("GPU", 0) * pool.max_groups for pool in fleet.pools)
        if given != taken:
            wrong.append(f"{fleet.cluster.name}: has {given:g} GPUs and uses {taken:g}")
    return wrong


def cards_are_as_large_as_planned(manifests: list[Manifest]) -> list[str]:
    """Pods go to nodes whose cards have at least the memory that the pool's plan counts on, within a percent."""
    wrong = []
    for pool, pods in _homes_with_cards(manifests):
        planned, least = parse_gpus(str(pool.gpu)).kind.total_bytes / _MIB, _least_card(pods)
        if not 0.99 * planned <= least <= 1.01 * planned:
            wrong.append(f"{pool.name}: planned for {planned:.0f} MiB, {pods.name} takes cards above {least:g}")
    return wrong


def pods_can_render_the_usual_video(manifests: list[Manifest]) -> list[str]:
    """The plan of a minute in the usual size fits the cards of every pool, and their pods' memory beside /dev/shm."""
    wrong = []
    for pool, pods in _homes_with_cards(manifests):
        plan = _plan(parse_gpus(f"{pool.num_ranks}x{pool.gpu}"), ParallelLayout.parse(pool.layout))
        if isinstance(plan.verdict, NeverFits):
            wrong.append(f"{pool.name}: {pool.layout} never fits {plan.question.gpus}")
        if pods.free_memory_bytes < plan.host.memory_bytes:
            wrong.append(f"{pods.name}: {pool.name} needs {plan.host.memory_bytes / GIB:.0f} GiB")
    return wrong


def groups_see_their_checkpoint(manifests: list[Manifest]) -> list[str]:
    """For reading alone: k8s/weights wrote it."""
    wrong = []
    for pool, pods in (home for fleet in fleets(manifests) for home in fleet.homes):
        readable = {mount["mountPath"] for mount, _ in pods.mounts() if mount.get("readOnly")}
        if pool.checkpoint != "tiny" and not readable & {str(parent) for parent in PurePath(pool.checkpoint).parents}:
            wrong.append(f"{pods.name}: cannot read {pool.checkpoint}")
    return wrong


def pods_live_longer_than_their_ray(manifests: list[Manifest]) -> list[str]:
    """Ray, asked to end, first lets work finish; Kubernetes must not kill the pod before that."""
    return [
        f"{pods.name}: Ray drains for {drain_s(pods):g} s, but is killed after {grace_s(pods)} s"
        for pods in ray_pods(manifests)
        if not drain_s(pods) < grace_s(pods)
    ]


def drain_s(pods: Pods) -> float:
    return float(
        pods.env.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", {"value": RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S})["value"]
    )


def grace_s(pods: Pods) -> float:
    seconds: float = pods.spec.get("terminationGracePeriodSeconds", 30)
    return seconds


def fits_on(pool: PoolConfig, pods: Pods) -> bool:
    bundles = group_bundles(pool)
    return fits(bundles.as_list(), bundles.strategy, [pods.ray_capacity()])


def _homeless(fleet: Fleet) -> list[str]:
    free = [dict(pods.ray_capacity()) for pods in fleet.cluster.pods for _ in range(pods.count)]
    wrong = []
    pools = sorted(fleet.pools, key=lambda pool: group_bundles(pool).total().get("GPU", 0), reverse=True)
    for pool in chain.from_iterable(repeat(each, each.max_groups) for each in pools):
        bundles = group_bundles(pool)
        home = next((node for node in free if fits(bundles.as_list(), bundles.strategy, [node])), None)
        if home is None:
            wrong.append(f"{pool.name}: no place for {bundles.total()}")
            continue
        for name, share in bundles.total().items():
            home[name] -= share
    return wrong


def _homes_with_cards(manifests: list[Manifest]) -> list[tuple[PoolConfig, Pods]]:
    homes = [home for fleet in fleets(manifests) for home in fleet.homes]
    return [(pool, pods) for pool, pods in homes if pool.gpu is not None]


def _plan(cards: Gpus, layout: ParallelLayout) -> Plan:
    question = read_question({}, gpus=str(cards), layout=layout, inventory=lambda: cards, config=AppConfig())
    return make_plan(question, calibration=load_calibration(DEFAULT_FILE))


def _least_card(pods: Pods) -> float:
    affinity = pods.spec.get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    bounds = [
        float(expression["values"][0])
        for term in terms
        for expression in term["matchExpressions"]
        if expression["key"] == "nvidia.com/gpu.memory" and expression["operator"] == "Gt"
    ]
    return max(bounds, default=0.0)
