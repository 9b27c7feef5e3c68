"""Faults in the bulk jobs and their queue, each beside the rule that must refuse it."""

from __future__ import annotations

from functools import partial

from tests.k8s import group_rules, job_rules, network_rules, operator_rules, pod_rules, queue_rules, schema_rules
from tests.k8s.faults import ENV, RAY, REMOVED, Fault, drop, in_policy, put
from tests.k8s.faults import in_head as in_serving_head
from tests.k8s.manifests import Manifest, of_kind
from tests.k8s.rules import Rule

OWN = ("RayJob", "live-avatar-bulk")
SHARED = ("RayJob", "live-avatar-bulk-shared")
CLUSTER = (*OWN, "spec", "rayClusterSpec")
WORKERS = (*CLUSTER, "workerGroupSpecs", 0)
SUBMITTER = ("submitterPodTemplate", "spec")
in_own, in_shared = partial(put, *OWN, "spec"), partial(put, *SHARED, "spec")
in_cluster, in_workers = partial(put, *CLUSTER), partial(put, *WORKERS)
in_head = partial(put, *CLUSTER, "headGroupSpec")
in_queue = partial(put, "ClusterQueue", "live-avatar-bulk", "spec")
in_flavor = partial(put, "ResourceFlavor", "live-avatar-any", "spec")
CARDS = ("resourceGroups", 0, "flavors", 0, "resources", 2)
EGRESS = ("spec", "egress", 2)


def reword(name: str, old: str, new: str) -> Fault:
    """A fault in the entrypoint of a job."""

    def damage(manifests: list[Manifest]) -> None:
        (job,) = [each for each in of_kind(manifests, "RayJob") if each["metadata"]["name"] == name]
        assert old in job["spec"]["entrypoint"]
        job["spec"]["entrypoint"] = job["spec"]["entrypoint"].replace(old, new)

    return damage


reword_own, reword_shared = partial(reword, OWN[1]), partial(reword, SHARED[1])

BULK_FAULTS: tuple[tuple[Rule, Fault], ...] = (
    (schema_rules.manifests_follow_their_schemas, in_own("backoffLimits", value=1)),
    (schema_rules.manifests_follow_their_schemas, in_shared("preRunningDeadlineSeconds", value=0)),
    (schema_rules.manifests_follow_their_schemas, in_queue("cohort", value="gpus")),
    (
        schema_rules.manifests_follow_their_schemas,
        put("ResourceFlavor", "live-avatar-any", "metadata", "namespace", value="live-avatar"),
    ),
    (operator_rules.names_become_names_of_services, put(*OWN, "metadata", "name", value="b" * 48)),
    (operator_rules.upgrades_are_of_a_known_kind, in_cluster("upgradeStrategy", value={"type": "None"})),
    (operator_rules.groups_count_within_their_bounds, in_workers("minReplicas", value=3)),
    (operator_rules.the_heads_memory_is_in_redis_and_said_once, in_cluster("gcsFaultToleranceOptions", value={"x": 1})),
    (
        operator_rules.the_heads_memory_is_in_redis_and_said_once,
        in_head(*ENV, 0, value={"name": "RAY_REDIS_ADDRESS", "value": "live-avatar-redis:6379"}),
    ),
    (operator_rules.ray_asks_for_a_token, in_cluster("authOptions", value=REMOVED)),
    (operator_rules.ray_listens_where_the_operator_looks, in_workers(*RAY, "ports", value=[])),
    (pod_rules.pods_have_no_privileges, in_own(*SUBMITTER, "securityContext", value={})),
    (pod_rules.pods_have_no_token_for_kubernetes, in_shared(*SUBMITTER, "serviceAccountName", value="admin")),
    (pod_rules.pods_say_what_they_need, in_shared(*SUBMITTER, "containers", 0, "resources", value=REMOVED)),
    (pod_rules.secrets_are_told, in_head(*ENV, 0, "valueFrom", "secretKeyRef", "key", value="accessKey")),
    (pod_rules.secrets_are_told, in_workers(*ENV, 3, "valueFrom", "configMapKeyRef", "name", value="s3")),
    (
        pod_rules.no_secret_is_written_down,
        in_head(*ENV, 1, value={"name": "AWS_SECRET_ACCESS_KEY", "value": "7Zk3pQ"}),
    ),
    (pod_rules.no_secret_is_written_down, in_own("runtimeEnvYAML", value="env_vars: {AWS_ACCESS_KEY_ID: x}")),
    (
        pod_rules.no_secret_is_written_down,
        lambda manifests: manifests.append({"kind": "Secret", "metadata": {"name": "live-avatar-s3"}}),
    ),
    (
        network_rules.only_labelled_clients_reach_the_api,
        in_policy("live-avatar-bulk-ray", "spec", "ingress", 0, "from", 0, "podSelector", "matchExpressions", value=[]),
    ),
    (
        network_rules.only_labelled_clients_reach_the_api,
        in_policy("live-avatar-bulk-ray", "spec", "ingress", 0, "from", value=REMOVED),
    ),
    (
        network_rules.only_operator_and_submitters_reach_a_head,
        in_policy("live-avatar-bulk-dashboard", "spec", "ingress", 0, "from", 0, "podSelector", value={}),
    ),
    (
        network_rules.only_operator_and_submitters_reach_a_head,
        in_policy("live-avatar-bulk-dashboard", "spec", "ingress", 0, "ports", 0, "port", value="client"),
    ),
    (
        network_rules.only_operator_and_submitters_reach_a_head,
        in_policy("live-avatar-shared-dashboard", "spec", "ingress", 0, "from", 0, "podSelector", value={}),
    ),
    (network_rules.submitters_reach_the_head, drop("NetworkPolicy", "live-avatar-shared-dashboard")),
    (
        network_rules.submitters_reach_the_head,
        in_policy("live-avatar-shared-submit", "spec", "egress", 0, "ports", 0, "port", value="gcs-server"),
    ),
    (network_rules.submitters_reach_the_head, in_policy("live-avatar-bulk-submit", "spec", "egress", 0, value={})),
    (
        network_rules.only_object_storage_is_outside,
        in_policy("live-avatar-bulk-ray", *EGRESS, "to", 0, "ipBlock", "except", value=REMOVED),
    ),
    (network_rules.only_object_storage_is_outside, in_policy("live-avatar-bulk-ray", *EGRESS, "ports", value=REMOVED)),
    (network_rules.only_object_storage_is_outside, in_policy("live-avatar-bulk-submit", "spec", "egress", 0, value={})),
    (network_rules.only_object_storage_is_outside, in_workers(*ENV, value=[])),
    (network_rules.pods_with_keys_reach_object_storage, drop("NetworkPolicy", "live-avatar-shared-storage")),
    (network_rules.pods_with_keys_reach_object_storage, in_policy("live-avatar-bulk-ray", *EGRESS, value={"to": [{}]})),
    (network_rules.pods_leave_one_at_a_time, drop("PodDisruptionBudget", "live-avatar-bulk")),
    (group_rules.every_group_finds_a_place, reword_own("--groups 2", "--groups 3")),
    (group_rules.no_card_stays_idle, reword_own("--groups 2", "--groups 1")),
    (group_rules.cards_are_as_large_as_planned, reword_own("--gpus 80", "--gpus 24")),
    (group_rules.pods_can_render_the_usual_video, in_workers(*RAY, "resources", "limits", "memory", value="28Gi")),
    (group_rules.groups_see_their_checkpoint, reword_own("/checkpoints/live", "/weights/live")),
    (group_rules.groups_see_their_checkpoint, in_workers(*RAY, "volumeMounts", 1, "readOnly", value=REMOVED)),
    (job_rules.jobs_name_one_cluster, in_own("clusterSelector", value={"ray.io/cluster": "live-avatar"})),
    (job_rules.jobs_name_one_cluster, in_shared("clusterSelector", value=REMOVED)),
    (job_rules.jobs_name_one_cluster, in_shared("clusterSelector", value={"app": "live-avatar"})),
    (job_rules.jobs_name_one_cluster, in_shared("clusterSelector", "ray.io/cluster", value="")),
    (job_rules.clusters_of_others_are_left_alone, in_shared("backoffLimit", value=1)),
    (job_rules.clusters_of_others_are_left_alone, in_shared("suspend", value=True)),
    (job_rules.clusters_of_others_are_left_alone, in_shared("activeDeadlineSeconds", value=3600)),
    (job_rules.own_clusters_end_with_their_jobs, in_own("shutdownAfterJobFinishes", value=REMOVED)),
    (job_rules.own_clusters_end_with_their_jobs, in_own("ttlSecondsAfterFinished", value=3600)),
    (job_rules.own_clusters_end_with_their_jobs, in_own("ttlSecondsAfterFinished", value=-1)),
    (job_rules.own_clusters_end_with_their_jobs, in_own("deletionStrategy", value={"deletionRules": []})),
    (job_rules.own_clusters_end_with_their_jobs, in_own("suspend", value=True)),
    (job_rules.retries_are_counted, in_own("backoffLimit", value=6)),
    (job_rules.retries_are_counted, in_own("backoffLimit", value=-1)),
    (job_rules.deadlines_are_set_and_in_order, in_own("activeDeadlineSeconds", value=0)),
    (job_rules.deadlines_are_set_and_in_order, in_own("activeDeadlineSeconds", value=1800)),
    (job_rules.deadlines_are_set_and_in_order, in_shared("preRunningDeadlineSeconds", value=REMOVED)),
    (job_rules.submitters_are_pods_of_ours, in_own("submitterPodTemplate", value=REMOVED)),
    (job_rules.submitters_are_pods_of_ours, in_own("submissionMode", value="SidecarMode")),
    (job_rules.submitters_are_pods_of_ours, in_shared("submissionMode", value="InteractiveMode")),
    (job_rules.submitters_are_pods_of_ours, in_shared(*SUBMITTER, "restartPolicy", value=REMOVED)),
    (job_rules.submitters_are_pods_of_ours, in_own(*SUBMITTER, "containers", 0, "command", value=["ray", "job"])),
    (job_rules.submitters_are_pods_of_ours, in_own(*SUBMITTER, "containers", 0, "image", value="ray:2.60.0")),
    (job_rules.entrypoints_are_bulk_runs, reword_own("bulk run", "bulk validate")),
    (job_rules.entrypoints_are_bulk_runs, in_own("entrypointNumGpus", value=1)),
    (job_rules.entrypoints_are_bulk_runs, in_shared("runtimeEnvYAML", value="pip: [boto3]")),
    (job_rules.drivers_have_time_to_stop, in_own("runtimeEnvYAML", value=REMOVED)),
    (job_rules.drivers_have_time_to_stop, in_own("runtimeEnvYAML", value="env_vars: {RAY_JOB_STOP_WAIT_TIME_S: 60}")),
    (job_rules.drivers_have_time_to_stop, in_shared("runtimeEnvYAML", value="env_vars: {RAY_JOB_STOP_TIME_S: '60'}")),
    (job_rules.a_drivers_own_ray_outlives_its_stop, in_shared("runtimeEnvYAML", value="env_vars: {}")),
    (job_rules.the_command_takes_its_entrypoints, reword_own("--layout", "--layouts")),
    (job_rules.what_is_done_outlives_the_cluster, reword_own("--out s3://BUCKET/out", "--out /data/out")),
    (job_rules.what_is_done_outlives_the_cluster, reword_shared("s3://BUCKET/manifest.jsonl", "manifest.jsonl")),
    (job_rules.drivers_find_their_groups, reword_own("--address auto", "")),
    (job_rules.drivers_find_their_groups, reword_shared("--pool serve", "--pool own")),
    (job_rules.drivers_find_their_groups, reword_shared("live-avatar-serve-svc", "live-avatar-head-svc")),
    (job_rules.drivers_find_their_groups, reword_shared(":8000", "")),
    (job_rules.drivers_find_their_groups, in_policy("live-avatar-ray", "spec", "egress", 0, value={})),
    (job_rules.drivers_and_groups_have_keys, in_workers(*ENV, value=[])),
    (job_rules.drivers_and_groups_have_keys, in_serving_head(*ENV, value=[])),
    (queue_rules.queued_jobs_can_be_suspended, in_own("shutdownAfterJobFinishes", value=False)),
    (
        queue_rules.queued_jobs_can_be_suspended,
        put(*SHARED, "metadata", "labels", queue_rules.LABEL, value="live-avatar-bulk"),
    ),
    (queue_rules.queued_jobs_can_be_suspended, in_cluster("enableInTreeAutoscaling", value=True)),
    (queue_rules.queued_jobs_can_be_suspended, in_cluster("workerGroupSpecs", value=[{}] * 18)),
    (queue_rules.jobs_wait_in_queues_that_exist, put(*OWN, "metadata", "labels", queue_rules.LABEL, value="bulk")),
    (
        queue_rules.jobs_wait_in_queues_that_exist,
        put("LocalQueue", "live-avatar-bulk", "metadata", "namespace", value="default"),
    ),
    (queue_rules.queues_lead_to_quotas, put("LocalQueue", "live-avatar-bulk", "spec", "clusterQueue", value="bulk")),
    (queue_rules.queues_lead_to_quotas, in_queue("namespaceSelector", value=REMOVED)),
    (queue_rules.queues_lead_to_quotas, drop("ResourceFlavor", "live-avatar-any")),
    (queue_rules.flavors_list_what_is_covered, in_queue("resourceGroups", 0, "coveredResources", value=["cpu"])),
    (queue_rules.flavors_list_what_is_covered, in_queue(*CARDS, "name", value="amd.com/gpu")),
    (
        queue_rules.nothing_is_in_two_groups,
        in_queue("resourceGroups", 0, "coveredResources", value=["cpu", "memory", "cpu"]),
    ),
    (queue_rules.borrowing_needs_a_cohort, in_queue("cohortName", value=REMOVED)),
    (
        queue_rules.preemption_is_consistent,
        in_queue("preemption", value={"borrowWithinCohort": {"policy": "LowerPriority"}}),
    ),
    (
        queue_rules.preemption_is_consistent,
        in_queue("flavorFungibility", "preference", value="PreemptionOverBorrowing"),
    ),
    (queue_rules.flavors_are_whole, in_flavor("topologyName", value="racks")),
    (queue_rules.flavors_are_whole, in_flavor("nodeLabels", value={"nvidia.com/gpu.present": "true"})),
    (queue_rules.quotas_hold_one_job, in_queue(*CARDS, "nominalQuota", value="1")),
    (
        queue_rules.quotas_hold_one_job,
        in_queue("resourceGroups", 0, "flavors", 0, "resources", 0, "nominalQuota", value=36),
    ),
    (queue_rules.quotas_hold_one_job, in_workers("replicas", value=3)),
)
