"""What the operator, KubeRay 1.7.0, refuses in a Ray cluster beyond its schema, or takes and does not do."""

from __future__ import annotations

import re

from tests.k8s.manifests import Manifest, RayCluster, of_kind, ray_clusters, ray_pods

_LONGEST_NAME = 47
_OLDEST_WITH_TOKENS = (2, 52)
_UPGRADES = ("None", "NewCluster", "NewClusterWithIncrementalUpgrade")
_COUNTED = {"num-cpus", "num-gpus", "memory", "resources"}
_REDIS_ENV = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_gcs_storage", "RAY_gcs_storage_path"}
_BEHIND_ALPHA_GATES = ("networkPolicy", "tlsOptions", "historyServerOptions")
_WITHOUT_EFFECT = ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold")
_PORTS = {"metrics": 8080}
_HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
_SERVE_PORTS = {"serve": 8000}


def names_become_names_of_services(manifests: list[Manifest]) -> list[str]:
    return [
        f"the name {name} is no DNS label of at most {_LONGEST_NAME} characters"
        for manifest in [*of_kind(manifests, "RayService"), *of_kind(manifests, "RayJob")]
        for name in [manifest["metadata"]["name"]]
        if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) or len(name) > _LONGEST_NAME
    ]


def upgrades_are_of_a_known_kind(manifests: list[Manifest]) -> list[str]:
    kinds = [service["spec"].get("upgradeStrategy", {}).get("type") for service in of_kind(manifests, "RayService")]
    wrong = [f"upgradeStrategy.type {kind} is none of {_UPGRADES}" for kind in kinds if kind not in _UPGRADES]
    return wrong + [
        f"{cluster.name}: upgradeStrategy is for a RayCluster of one's own"
        for cluster in ray_clusters(manifests)
        if "upgradeStrategy" in cluster.spec
    ]


def groups_count_within_their_bounds(manifests: list[Manifest]) -> list[str]:
    return [
        f"{group['groupName']}: {low} <= {group.get('replicas')} <= {high} does not hold"
        for cluster in ray_clusters(manifests)
        for group in cluster.spec["workerGroupSpecs"]
        for low, high in [(group.get("minReplicas", -1), group.get("maxReplicas", -1))]
        if not 0 <= low <= group.get("replicas", -1) <= high
    ]


def groups_say_their_resources_once(manifests: list[Manifest]) -> list[str]:
    wrong = []
    for group in (group for cluster in ray_clusters(manifests) for group in cluster.groups):
        name, params = group.get("groupName", "head"), group.get("rayStartParams", {})
        if group.get("resources") and _COUNTED & set(params):
            wrong.append(f"{name}: resources and rayStartParams {sorted(_COUNTED & set(params))} exclude each other")
        if "labels" in params:
            wrong.append(f"{name}: rayStartParams.labels is refused; use labels")
    return wrong


def without_autoscaler_nothing_is_for_it(manifests: list[Manifest]) -> list[str]:
    wrong = []
    for cluster in ray_clusters(manifests):
        if cluster.spec.get("enableInTreeAutoscaling"):
            continue
        if "autoscalerOptions" in cluster.spec:
            wrong.append("autoscalerOptions need the autoscaler")
        if "RAY_enable_autoscaler_v2" in cluster.pods[0].env:
            wrong.append("the head's RAY_enable_autoscaler_v2 needs the autoscaler")
        for group in cluster.spec["workerGroupSpecs"]:
            own = [name for name in ("idleTimeoutSeconds", "priority") if name in group]
            wrong += [f"{group['groupName']}: {name} needs the autoscaler" for name in own]
    return wrong


def the_heads_memory_is_in_redis_and_said_once(manifests: list[Manifest]) -> list[str]:
    """A service outlives its head; a job starts again."""
    wrong = []
    for cluster in ray_clusters(manifests):
        options = cluster.spec.get("gcsFaultToleranceOptions", {})
        if cluster.serves or options:
            wrong += [f"{name} is missing" for name in ("redisAddress", "redisPassword") if name not in options]
        if options.get("backend", "redis") != "redis" or "storage" in options:
            wrong.append("another backend than Redis is behind an alpha gate")
        wrong += _redis_by_hand(cluster)
    return wrong


def _redis_by_hand(cluster: RayCluster) -> list[str]:
    """With gcsFaultToleranceOptions all this is refused, without them it turns Redis on unseen."""
    wrong = [f"the head's {name} is the operator's to set" for name in sorted(_REDIS_ENV & set(cluster.pods[0].env))]
    own = {"redis-password", "redis-username"} & set(cluster.groups[0].get("rayStartParams", {}))
    wrong += [f"{name} belongs in gcsFaultToleranceOptions" for name in sorted(own)]
    annotations = {**cluster.owner["metadata"].get("annotations", {})}
    annotations |= cluster.groups[0]["template"]["metadata"].get("annotations", {})
    old = {"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & set(annotations)
    return wrong + [f"annotation {name} excludes gcsFaultToleranceOptions" for name in sorted(old)]


def ray_asks_for_a_token(manifests: list[Manifest]) -> list[str]:
    wrong = []
    for cluster in ray_clusters(manifests):
        options, version = cluster.spec.get("authOptions", {}), cluster.spec.get("rayVersion", "0.0")
        if options.get("mode") != "token" or "secretName" not in options:
            wrong.append(f"authOptions {options} are not mode token with a secretName")
        if options.get("enableK8sTokenAuth"):
            wrong.append("enableK8sTokenAuth is refused in a RayService and in a RayJob")
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_WITH_TOKENS:
            wrong.append(f"rayVersion {version} knows no tokens")
    return wrong


def nothing_is_behind_an_alpha_gate(manifests: list[Manifest]) -> list[str]:
    return [
        f"{cluster.name}: {name} is behind an alpha gate"
        for cluster in ray_clusters(manifests)
        for name in _BEHIND_ALPHA_GATES
        if name in cluster.spec
    ]


def no_field_is_without_effect(manifests: list[Manifest]) -> list[str]:
    specs = [service["spec"] for service in of_kind(manifests, "RayService")]
    return [f"{name} does nothing" for spec in specs for name in _WITHOUT_EFFECT if name in spec]


def names_and_probes_are_the_operators(manifests: list[Manifest]) -> list[str]:
    """With probes of ours the operator leaves out its own, which know whether Ray and Serve are well."""
    wrong = [
        f"{pods.name}: {probe} takes the place of the operator's"
        for pods in ray_pods(manifests)
        for probe in ("livenessProbe", "readinessProbe", "startupProbe")
        if probe in pods.container
    ]
    wrong += [
        f"{pods.name}: a command of ours runs before `ray start`"
        for pods in ray_pods(manifests)
        if pods.container.get("command") or pods.container.get("args")
    ]
    services = [cluster.spec["headGroupSpec"].get("headService", {}) for cluster in ray_clusters(manifests)]
    return wrong + [f"headService.metadata.name of {each} is refused" for each in services if _is_named(each)]


def _is_named(service: Manifest) -> bool:
    return bool(service.get("metadata", {}).get("name"))


def ray_listens_where_the_operator_looks(manifests: list[Manifest]) -> list[str]:
    """The operator finds ports by name, and makes the service of the API of the head's port `serve`."""
    wrong = []
    for cluster in ray_clusters(manifests):
        for pods in cluster.pods:
            wanted = _PORTS | (_HEAD_PORTS if pods.is_head else {}) | (_SERVE_PORTS if cluster.serves else {})
            found = {port["name"]: port["containerPort"] for port in pods.container.get("ports", [])}
            if found != wanted:
                wrong.append(f"{pods.name}: ports {found}, not {wanted}")
    return wrong
