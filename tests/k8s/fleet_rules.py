"""Rules that join the application's settings with the pods: where groups go, and how they leave."""

from __future__ import annotations

from itertools import chain, repeat
from pathlib import PurePath

from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

from ray_cluster.bundles import Strategy
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
from tests.k8s.manifests import Manifest, Pods, ray_pods
from tests.k8s.serve_rules import deployments, service_config

_MIB = 2**20


def the_head_carries_nothing(manifests: list[Manifest]) -> list[str]:
    capacity = ray_pods(manifests)[0].ray_capacity()
    return [f"head: offers {capacity}" for name in ("CPU", "GPU") if capacity[name] != 0]


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


def one_pod_alone_carries_the_control(manifests: list[Manifest]) -> list[str]:
    """The job store is a file of SQLite: everything that opens it is on the one node with the control resource."""
    name = service_config(manifests).control_resource
    if name is None:
        return ["control_resource is not set"]
    carriers = [pods for pods in ray_pods(manifests) if pods.ray_capacity().get(name, 0) > 0]
    return [] if [pods.count for pods in carriers] == [1] else [f"{name} is on {[pods.name for pods in carriers]}"]


def deployments_find_their_resources(manifests: list[Manifest]) -> list[str]:
    """Dispatcher and API fit beside whatever else the control pod carries."""
    wanted: dict[str, float] = {}
    for deployment in deployments(manifests):
        for name, share in deployment.actor_resources.items():
            if not deployment.has_placement_group:
                wanted[name] = wanted.get(name, 0) + share * deployment.num_replicas
    control = [pods for pods in ray_pods(manifests) if pods.ray_group and pods.ray_group.get("resources")]
    for pods in control:
        for pool in _pools_on(manifests, pods):
            wanted["CPU"] += group_bundles(pool).total()["CPU"] * pool.max_groups
    return [
        f"{pods.name}: {wanted} does not fit {pods.ray_capacity()}"
        for pods in control
        if not fits([wanted], Strategy.STRICT_PACK, [pods.ray_capacity()])
    ]


def every_group_finds_a_place(manifests: list[Manifest]) -> list[str]:
    """All groups of all pools at once, the widest first, each whole on one pod."""
    free = [dict(pods.ray_capacity()) for pods in ray_pods(manifests) for _ in range(pods.count)]
    wrong = []
    pools = sorted(service_config(manifests).pools, key=lambda pool: group_bundles(pool).total().get("GPU", 0))
    for pool in chain.from_iterable(repeat(each, each.max_groups) for each in reversed(pools)):
        bundles = group_bundles(pool).as_list()
        home = next((node for node in free if fits(bundles, group_bundles(pool).strategy, [node])), None)
        if home is None:
            wrong.append(f"{pool.name}: no place for {group_bundles(pool).total()}")
            continue
        for name, share in group_bundles(pool).total().items():
            home[name] -= share
    return wrong


def every_pool_has_its_own_pods(manifests: list[Manifest]) -> list[str]:
    """Bundles do not say which card they want: a pool must fit into the pods of one worker group alone."""
    wrong = []
    for pool in service_config(manifests).pools:
        homes = [pods.name for pods in ray_pods(manifests) if _fits_on(pool, pods)]
        if len(homes) != 1:
            wrong.append(f"{pool.name}: fits on {homes}")
    return wrong


def cards_are_as_large_as_planned(manifests: list[Manifest]) -> list[str]:
    """Pods go to nodes whose cards have at least the memory that the pool's plan counts on, within a percent."""
    wrong = []
    for pool in service_config(manifests).pools:
        if pool.gpu is None:
            continue
        planned = parse_gpus(pool.gpu).kind.total_bytes / _MIB
        for pods in ray_pods(manifests):
            least = _least_card(pods)
            if _fits_on(pool, pods) and not 0.99 * planned <= least <= 1.01 * planned:
                wrong.append(f"{pool.name}: planned for {planned:.0f} MiB, {pods.name} takes cards above {least:g}")
    return wrong


def pods_can_render_the_usual_video(manifests: list[Manifest]) -> list[str]:
    """The plan of a minute in the usual size fits the cards of every pool, and their pods' memory beside /dev/shm."""
    wrong = []
    for pool in service_config(manifests).pools:
        if pool.gpu is None:
            continue
        plan = _plan(parse_gpus(f"{pool.num_ranks}x{pool.gpu}"), ParallelLayout.parse(pool.layout))
        if isinstance(plan.verdict, NeverFits):
            wrong.append(f"{pool.name}: {pool.layout} never fits {plan.question.gpus}")
        wrong += [
            f"{pods.name}: {pool.name} needs {plan.host.memory_bytes / GIB:.0f} GiB"
            for pods in ray_pods(manifests)
            if _fits_on(pool, pods) and pods.free_memory_bytes < plan.host.memory_bytes
        ]
    return wrong


def groups_see_their_files(manifests: list[Manifest]) -> list[str]:
    """Data for reading and writing wherever there is work, the checkpoint for reading where its pool is."""
    config = service_config(manifests)
    wrong = []
    for pods in ray_pods(manifests):
        if pods.is_head:
            continue
        writable = {mount["mountPath"] for mount, _ in pods.mounts() if not mount.get("readOnly")}
        if str(config.data_dir) not in writable:
            wrong.append(f"{pods.name}: cannot write {config.data_dir}")
        readable = {mount["mountPath"] for mount, _ in pods.mounts() if mount.get("readOnly")}
        checkpoints = {pool.checkpoint for pool in _pools_on(manifests, pods)} - {"tiny"}
        wrong += [
            f"{pods.name}: cannot read {checkpoint}"
            for checkpoint in sorted(checkpoints)
            if not readable & {str(parent) for parent in PurePath(checkpoint).parents}
        ]
    return wrong


def pods_leave_when_their_videos_are_done(manifests: list[Manifest]) -> list[str]:
    """drain_s < what Ray gives its node <= what Serve gives a group < what Kubernetes gives the pod.

    Serve begins to drain when the node has no more time left than the group may take.
    """
    drain_s = service_config(manifests).times.drain_s
    group_s = {each.name: each.shutdown_s for each in deployments(manifests)}
    wrong = []
    for pods in ray_pods(manifests):
        env = {variable["name"]: variable["value"] for variable in pods.container.get("env", [])}
        ray_s = float(env.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S))
        pod_s = pods.spec.get("terminationGracePeriodSeconds", 30)
        if not ray_s < pod_s:
            wrong.append(f"{pods.name}: Ray drains for {ray_s:g} s, but is killed after {pod_s} s")
        for pool in _pools_on(manifests, pods):
            longest_s = group_s[f"group-{pool.name}"]
            if not drain_s < ray_s <= longest_s < pod_s:
                wrong.append(f"{pods.name}: {drain_s:g} < {ray_s:g} <= {longest_s:g} < {pod_s} s does not hold")
    return wrong


def _plan(cards: Gpus, layout: ParallelLayout) -> Plan:
    question = read_question({}, gpus=str(cards), layout=layout, inventory=lambda: cards, config=AppConfig())
    return make_plan(question, calibration=load_calibration(DEFAULT_FILE))


def _fits_on(pool: PoolConfig, pods: Pods) -> bool:
    bundles = group_bundles(pool)
    return fits(bundles.as_list(), bundles.strategy, [pods.ray_capacity()])


def _pools_on(manifests: list[Manifest], pods: Pods) -> list[PoolConfig]:
    return [pool for pool in service_config(manifests).pools if _fits_on(pool, pods)]


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
