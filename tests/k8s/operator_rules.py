"""What the operator, KubeRay 1.7.0, refuses in a RayService beyond its schema, or takes and does not do."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.k8s.manifests import Manifest, ray_cluster, ray_groups, ray_pods, ray_service

_LONGEST_NAME = 47
_OLDEST_WITH_TOKENS = (2, 52)
_UPGRADES = ("None", "NewCluster", "NewClusterWithIncrementalUpgrade")
_COUNTED = {"num-cpus", "num-gpus", "memory", "resources"}
_REDIS_ENV = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_gcs_storage", "RAY_gcs_storage_path"}
_BEHIND_ALPHA_GATES = ("networkPolicy", "tlsOptions", "historyServerOptions")
_WITHOUT_EFFECT = ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold")
_WORKER_PORTS = {"serve": 8000, "metrics": 8080}
_HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, **_WORKER_PORTS}


def names_become_names_of_services(manifests: list[Manifest]) -> list[str]:
    name = ray_service(manifests)["metadata"]["name"]
    is_label = re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) is not None
    if is_label and len(name) <= _LONGEST_NAME:
        return []
    return [f"the name {name} is no DNS label of at most {_LONGEST_NAME} characters"]


def upgrades_are_of_a_known_kind(manifests: list[Manifest]) -> list[str]:
    spec = ray_service(manifests)["spec"]
    kind = spec.get("upgradeStrategy", {}).get("type")
    wrong = [] if kind in _UPGRADES else [f"upgradeStrategy.type {kind} is none of {_UPGRADES}"]
    if "upgradeStrategy" in spec["rayClusterConfig"]:
        wrong.append("upgradeStrategy of the cluster is refused inside a RayService")
    return wrong


def groups_count_within_their_bounds(manifests: list[Manifest]) -> list[str]:
    return [
        f"{group['groupName']}: {low} <= {group.get('replicas')} <= {high} does not hold"
        for group in ray_cluster(manifests)["workerGroupSpecs"]
        for low, high in [(group.get("minReplicas", -1), group.get("maxReplicas", -1))]
        if not 0 <= low <= group.get("replicas", -1) <= high
    ]


def groups_say_their_resources_once(manifests: list[Manifest]) -> list[str]:
    wrong = []
    for group in ray_groups(manifests):
        name, params = group.get("groupName", "head"), group.get("rayStartParams", {})
        if group.get("resources") and _COUNTED & set(params):
            wrong.append(f"{name}: resources and rayStartParams {sorted(_COUNTED & set(params))} exclude each other")
        if "labels" in params:
            wrong.append(f"{name}: rayStartParams.labels is refused; use labels")
    return wrong


def without_autoscaler_nothing_is_for_it(manifests: list[Manifest]) -> list[str]:
    cluster = ray_cluster(manifests)
    if cluster.get("enableInTreeAutoscaling"):
        return []
    wrong = ["autoscalerOptions need the autoscaler"] if "autoscalerOptions" in cluster else []
    if "RAY_enable_autoscaler_v2" in _env(cluster["headGroupSpec"]):
        wrong.append("the head's RAY_enable_autoscaler_v2 needs the autoscaler")
    for group in cluster["workerGroupSpecs"]:
        own = [name for name in ("idleTimeoutSeconds", "priority") if name in group]
        wrong += [f"{group['groupName']}: {name} needs the autoscaler" for name in own]
    return wrong


def the_heads_memory_is_in_redis_and_said_once(manifests: list[Manifest]) -> list[str]:
    cluster = ray_cluster(manifests)
    options, head = cluster.get("gcsFaultToleranceOptions", {}), cluster["headGroupSpec"]
    wrong = [f"{name} is missing" for name in ("redisAddress", "redisPassword") if name not in options]
    if options.get("backend", "redis") != "redis" or "storage" in options:
        wrong.append("another backend than Redis is behind an alpha gate")
    wrong += [f"the head's {name} is the operator's to set" for name in sorted(_REDIS_ENV & _env(head))]
    if "redis-password" in head.get("rayStartParams", {}):
        wrong.append("redis-password belongs in gcsFaultToleranceOptions")
    annotations = {**ray_service(manifests)["metadata"].get("annotations", {})}
    annotations |= head["template"]["metadata"].get("annotations", {})
    old = {"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & set(annotations)
    return wrong + [f"annotation {name} excludes gcsFaultToleranceOptions" for name in sorted(old)]


def ray_asks_for_a_token(manifests: list[Manifest]) -> list[str]:
    cluster = ray_cluster(manifests)
    options, version = cluster.get("authOptions", {}), cluster.get("rayVersion", "0.0")
    wrong = []
    if options.get("mode") != "token" or "secretName" not in options:
        wrong.append(f"authOptions {options} are not mode token with a secretName")
    if options.get("enableK8sTokenAuth"):
        wrong.append("enableK8sTokenAuth is refused in a RayService")
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_WITH_TOKENS:
        wrong.append(f"rayVersion {version} knows no tokens")
    return wrong


def nothing_is_behind_an_alpha_gate(manifests: list[Manifest]) -> list[str]:
    return [f"{name} is behind an alpha gate" for name in _BEHIND_ALPHA_GATES if name in ray_cluster(manifests)]


def no_field_is_without_effect(manifests: list[Manifest]) -> list[str]:
    spec = ray_service(manifests)["spec"]
    return [f"{name} does nothing" for name in _WITHOUT_EFFECT if name in spec]


def names_and_probes_are_the_operators(manifests: list[Manifest]) -> list[str]:
    """With probes of ours the operator leaves out its own, which know whether Ray and Serve are well."""
    wrong = [
        f"{pods.name}: {probe} takes the place of the operator's"
        for pods in ray_pods(manifests)
        for probe in ("livenessProbe", "readinessProbe", "startupProbe")
        if probe in pods.container
    ]
    head_service = ray_cluster(manifests)["headGroupSpec"].get("headService", {})
    if head_service.get("metadata", {}).get("name"):
        wrong.append("headService.metadata.name is refused")
    if any(pods.container.get("command") or pods.container.get("args") for pods in ray_pods(manifests)):
        wrong.append("a command of ours runs before `ray start`")
    return wrong


def ray_listens_where_the_operator_looks(manifests: list[Manifest]) -> list[str]:
    """The operator finds ports by name, and makes the service of the API of the head's port `serve`."""
    wrong = []
    for pods in ray_pods(manifests):
        wanted = _HEAD_PORTS if pods.is_head else _WORKER_PORTS
        found = {port["name"]: port["containerPort"] for port in pods.container.get("ports", [])}
        if found != wanted:
            wrong.append(f"{pods.name}: ports {found}, not {wanted}")
    return wrong


def _env(group: Manifest) -> set[str]:
    return set(_env_names(group["template"]["spec"]["containers"][0]))


def _env_names(container: Manifest) -> Iterator[str]:
    return (variable["name"] for variable in container.get("env", []))
