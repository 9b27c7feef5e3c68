"""Faults in the service, each beside the rule that must refuse it; those of bulk jobs are in `bulk_faults`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.k8s import fleet_rules, group_rules, network_rules, operator_rules, pod_rules, schema_rules, serve_rules
from tests.k8s.manifests import Manifest, of_kind, ray_service
from tests.k8s.rules import Rule

REMOVED = object()
Fault = Callable[[list[Manifest]], None]


def put(*path: str | int, value: object) -> Fault:
    """A fault at `path`, which begins with a kind and a name."""

    def damage(manifests: list[Manifest]) -> None:
        place: Any
        (place,) = [each for each in of_kind(manifests, str(path[0])) if each["metadata"]["name"] == path[1]]
        for step in path[2:-1]:
            place = place.setdefault(str(step), {}) if isinstance(place, dict) else place[step]
        if value is REMOVED:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return damage


def reword(old: str, new: str) -> Fault:
    """A fault in the settings of Serve."""

    def damage(manifests: list[Manifest]) -> None:
        spec = ray_service(manifests)["spec"]
        assert old in spec["serveConfigV2"]
        spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new)

    return damage


def drop(kind: str, name: str) -> Fault:
    def damage(manifests: list[Manifest]) -> None:
        (place,) = [each for each in of_kind(manifests, kind) if each["metadata"]["name"] == name]
        manifests.remove(place)

    return damage


SERVICE = ("RayService", "live-avatar")
SPEC = (*SERVICE, "spec")
CLUSTER = (*SPEC, "rayClusterConfig")
HEAD = (*CLUSTER, "headGroupSpec")
CONTROL, SINGLE, QUAD = ((*CLUSTER, "workerGroupSpecs", index) for index in range(3))
POD = ("template", "spec")
RAY = (*POD, "containers", 0)
REDIS = ("StatefulSet", "live-avatar-redis", "spec")
in_spec, in_cluster, in_head, in_control = (partial(put, *place) for place in (SPEC, CLUSTER, HEAD, CONTROL))
in_single, in_redis = partial(put, *SINGLE), partial(put, *REDIS)
in_policy = partial(put, "NetworkPolicy")
ENV = (*RAY, "env")

FAULTS: tuple[tuple[Rule, Fault], ...] = (
    (schema_rules.manifests_follow_their_schemas, in_spec("upgradeStrategies", value={})),
    (schema_rules.manifests_follow_their_schemas, in_single(*RAY, "resource", value={})),
    (schema_rules.manifests_follow_their_schemas, in_redis("replicas", value="one")),
    (operator_rules.names_become_names_of_services, put(*SERVICE, "metadata", "name", value="a" * 48)),
    (operator_rules.names_become_names_of_services, put(*SERVICE, "metadata", "name", value="4-avatars")),
    (operator_rules.upgrades_are_of_a_known_kind, in_spec("upgradeStrategy", "type", value="Recreate")),
    (operator_rules.upgrades_are_of_a_known_kind, in_cluster("upgradeStrategy", value={"type": "Recreate"})),
    (operator_rules.groups_count_within_their_bounds, in_single("maxReplicas", value=1)),
    (operator_rules.groups_say_their_resources_once, in_control("rayStartParams", "resources", value="'{}'")),
    (operator_rules.groups_say_their_resources_once, in_single("rayStartParams", "labels", value="a=b")),
    (operator_rules.without_autoscaler_nothing_is_for_it, in_single("idleTimeoutSeconds", value=60)),
    (operator_rules.without_autoscaler_nothing_is_for_it, in_cluster("autoscalerOptions", value={})),
    (
        operator_rules.without_autoscaler_nothing_is_for_it,
        in_head(*ENV, value=[{"name": "RAY_enable_autoscaler_v2", "value": "1"}]),
    ),
    (
        operator_rules.the_heads_memory_is_in_redis_and_said_once,
        in_cluster("gcsFaultToleranceOptions", "backend", value="rocksdb"),
    ),
    (
        operator_rules.the_heads_memory_is_in_redis_and_said_once,
        in_head(*ENV, value=[{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]),
    ),
    (
        operator_rules.the_heads_memory_is_in_redis_and_said_once,
        put(*SERVICE, "metadata", "annotations", "ray.io/ft-enabled", value="true"),
    ),
    (
        operator_rules.the_heads_memory_is_in_redis_and_said_once,
        in_head("rayStartParams", "redis-password", value="secret"),
    ),
    (operator_rules.the_heads_memory_is_in_redis_and_said_once, in_cluster("gcsFaultToleranceOptions", value={})),
    (operator_rules.ray_asks_for_a_token, in_cluster("authOptions", value={"mode": "disabled"})),
    (operator_rules.ray_asks_for_a_token, in_cluster("authOptions", "enableK8sTokenAuth", value=True)),
    (operator_rules.ray_asks_for_a_token, in_cluster("rayVersion", value="2.51.0")),
    (operator_rules.nothing_is_behind_an_alpha_gate, in_cluster("networkPolicy", value={})),
    (operator_rules.no_field_is_without_effect, in_spec("serviceUnhealthySecondThreshold", value=900)),
    (operator_rules.names_and_probes_are_the_operators, in_single(*RAY, "readinessProbe", value={})),
    (operator_rules.names_and_probes_are_the_operators, in_head("headService", "metadata", "name", value="head")),
    (operator_rules.names_and_probes_are_the_operators, in_single(*RAY, "command", value=["sleep"])),
    (operator_rules.ray_listens_where_the_operator_looks, in_head(*RAY, "ports", 3, "name", value="http")),
    (pod_rules.pods_have_no_privileges, in_head(*POD, "securityContext", "runAsNonRoot", value=REMOVED)),
    (pod_rules.pods_have_no_privileges, in_redis(*POD, "securityContext", "seccompProfile", value=REMOVED)),
    (pod_rules.pods_have_no_privileges, in_single(*RAY, "securityContext", "capabilities", value={"drop": []})),
    (pod_rules.pods_have_no_token_for_kubernetes, in_head(*POD, "automountServiceAccountToken", value=REMOVED)),
    (pod_rules.pods_have_no_token_for_kubernetes, in_redis(*POD, "serviceAccountName", value="default")),
    (pod_rules.pods_say_what_they_need, in_single(*RAY, "resources", "requests", "memory", value="1Gi")),
    (pod_rules.pods_say_what_they_need, in_redis(*RAY, "resources", "requests", "cpu", value=REMOVED)),
    (pod_rules.images_are_pinned, in_redis(*RAY, "image", value="redis:latest")),
    (pod_rules.images_are_pinned, in_head(*RAY, "image", value="live-avatar-serve")),
    (
        pod_rules.volumes_exist_and_go_where_they_are_used,
        in_control(*POD, "volumes", 1, "persistentVolumeClaim", "claimName", value="missing"),
    ),
    (pod_rules.volumes_exist_and_go_where_they_are_used, in_control(*RAY, "volumeMounts", 1, "name", value="datum")),
    (
        pod_rules.volumes_exist_and_go_where_they_are_used,
        put("PersistentVolumeClaim", "live-avatar-data", "spec", "accessModes", value=["ReadWriteOnce"]),
    ),
    (
        pod_rules.ray_has_the_shared_memory_that_it_counts_on,
        in_single("rayStartParams", "object-store-memory", value="68719476736"),
    ),
    (
        pod_rules.ray_has_the_shared_memory_that_it_counts_on,
        in_single(*POD, "volumes", 0, "emptyDir", "medium", value=REMOVED),
    ),
    (
        pod_rules.ray_has_the_shared_memory_that_it_counts_on,
        in_single(*POD, "volumes", 0, "emptyDir", "sizeLimit", value="65Gi"),
    ),
    (pod_rules.secrets_are_told, in_cluster("authOptions", "secretName", value="another")),
    (
        pod_rules.secrets_are_told,
        in_cluster("gcsFaultToleranceOptions", "redisPassword", "valueFrom", "secretKeyRef", "key", value="secret"),
    ),
    (
        network_rules.selectors_match_pods,
        in_policy("live-avatar-redis", "spec", "podSelector", "matchLabels", "app.kubernetes.io/component", value="x"),
    ),
    (
        network_rules.selectors_match_pods,
        put("Service", "live-avatar-redis", "spec", "selector", value={"app": "redis"}),
    ),
    (network_rules.owners_select_their_own_pods, in_redis("selector", "matchLabels", value={"app": "redis"})),
    (
        network_rules.ports_are_those_of_the_selected_pods,
        in_policy("live-avatar-api", "spec", "ingress", 0, "ports", 0, "port", value="http"),
    ),
    (
        network_rules.ports_are_those_of_the_selected_pods,
        put("Service", "live-avatar-redis", "spec", "ports", 0, "targetPort", value="db"),
    ),
    (network_rules.every_pod_is_closed_both_ways, drop("NetworkPolicy", "live-avatar-redis")),
    (
        network_rules.every_pod_is_closed_both_ways,
        in_policy("live-avatar-ray", "spec", "policyTypes", value=["Ingress"]),
    ),
    (
        network_rules.only_labelled_clients_reach_the_api,
        in_policy("live-avatar-api", "spec", "ingress", 0, "from", value=[{"namespaceSelector": {}}]),
    ),
    (
        network_rules.only_labelled_clients_reach_the_api,
        in_policy("live-avatar-api", "spec", "ingress", 0, "from", value=REMOVED),
    ),
    (
        network_rules.only_labelled_clients_reach_the_api,
        in_policy("live-avatar-api", "spec", "ingress", 0, "ports", value=REMOVED),
    ),
    (
        network_rules.only_labelled_clients_reach_the_api,
        put("Service", "live-avatar-redis", "spec", "type", value="LoadBalancer"),
    ),
    (network_rules.labelled_clients_do_reach_the_api, drop("NetworkPolicy", "live-avatar-api")),
    (
        network_rules.only_operator_and_submitters_reach_a_head,
        in_policy("live-avatar-operator", "spec", "ingress", 0, "from", 0, "podSelector", value={}),
    ),
    (network_rules.only_operator_and_submitters_reach_a_head, drop("NetworkPolicy", "live-avatar-operator")),
    (
        network_rules.pods_leave_one_at_a_time,
        put("PodDisruptionBudget", "live-avatar-render", "spec", "minAvailable", value="50%"),
    ),
    (network_rules.pods_leave_one_at_a_time, in_single("replicas", value=3)),
    (network_rules.pods_leave_one_at_a_time, drop("PodDisruptionBudget", "live-avatar-control")),
    (serve_rules.serve_knows_every_key, reword("proxy_location:", "proxy_locations:")),
    (serve_rules.serve_knows_every_key, reword("  port: 8000", "  ports: 8000")),
    (serve_rules.serve_knows_every_key, reword("    route_prefix: /", "    route_prefix: /\n    replicas: 2")),
    (serve_rules.the_application_is_ours, reword("serve_app.app:build_app", "serve_app.app:app")),
    (
        serve_rules.the_api_answers_to_its_names,
        reword("live-avatar-serve-svc.live-avatar.svc\n", "live-avatar-serve-svc.default.svc\n"),
    ),
    (serve_rules.the_api_answers_to_its_names, put(*SERVICE, "metadata", "namespace", value="video")),
    (serve_rules.serve_listens_on_the_pods_port, reword("port: 8000", "port: 8080")),
    (serve_rules.serve_listens_on_the_pods_port, reword("0.0.0.0", "127.0.0.1")),
    (serve_rules.proxies_tell_what_clients_have_taken, in_control(*RAY, "env", value=[])),
    (serve_rules.ray_is_of_the_version_of_the_image, in_cluster("rayVersion", value="2.59.0")),
    (group_rules.the_head_carries_nothing, in_head("rayStartParams", "num-cpus", value=REMOVED)),
    (
        group_rules.the_head_carries_nothing,
        in_head(*RAY, "resources", "limits", "nvidia.com/gpu", value="1"),
    ),
    (group_rules.gpus_are_asked_for_as_kubernetes_wants, in_single(*POD, "tolerations", value=REMOVED)),
    (
        group_rules.gpus_are_asked_for_as_kubernetes_wants,
        in_single(*RAY, "resources", "requests", "nvidia.com/gpu", value="2"),
    ),
    (fleet_rules.one_pod_alone_carries_the_control, in_control("replicas", value=2)),
    (fleet_rules.one_pod_alone_carries_the_control, in_single("resources", "control", value="1")),
    (fleet_rules.one_pod_alone_carries_the_control, reword("control_resource: control", "")),
    (fleet_rules.deployments_find_their_resources, in_control("resources", "control", value="0.01")),
    (
        fleet_rules.deployments_find_their_resources,
        in_control(*RAY, "resources", "requests", "cpu", value="200m"),
    ),
    (group_rules.every_group_finds_a_place, in_single("replicas", value=1)),
    (group_rules.every_group_finds_a_place, put(*QUAD, *RAY, "resources", "limits", "nvidia.com/gpu", value="3")),
    (group_rules.every_group_finds_a_place, reword("cpus_per_rank: 12", "cpus_per_rank: 14")),
    (group_rules.every_pool_has_its_own_pods, put(*QUAD, *RAY, "resources", "requests", "cpu", value="16")),
    (group_rules.cards_are_as_large_as_planned, in_single(*POD, "affinity", value=REMOVED)),
    (group_rules.cards_are_as_large_as_planned, reword('gpu: "80"', 'gpu: "H200"')),
    (group_rules.pods_can_render_the_usual_video, reword("ulysses=4,weight_shards=4", "ulysses=4")),
    (group_rules.pods_can_render_the_usual_video, in_single(*RAY, "resources", "limits", "memory", value="28Gi")),
    (fleet_rules.groups_see_their_files, reword("data_dir: /data", "data_dir: /videos")),
    (group_rules.groups_see_their_checkpoint, reword("/checkpoints/live-avatar", "/weights/live-avatar")),
    (fleet_rules.groups_see_their_files, in_control(*RAY, "volumeMounts", 1, "readOnly", value=True)),
    (fleet_rules.pods_leave_when_their_videos_are_done, reword("drain_s: 14400", "drain_s: 15000")),
    (fleet_rules.pods_leave_when_their_videos_are_done, in_single(*ENV, value=[])),
    (fleet_rules.pods_leave_when_their_videos_are_done, in_single(*ENV, 1, "value", value="14461")),
    (group_rules.pods_live_longer_than_their_ray, in_head(*POD, "terminationGracePeriodSeconds", value=REMOVED)),
    (
        fleet_rules.pods_leave_when_their_videos_are_done,
        in_single(*POD, "terminationGracePeriodSeconds", value=14430),
    ),
)
