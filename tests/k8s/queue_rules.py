"""Rules of Kueue 0.19: those that its own validation states beyond its schemas, and what makes a job pass its queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.k8s.manifests import Manifest, amount, of_kind, ray_clusters, submitter
from tests.k8s.network_rules import selects

LABEL = "kueue.x-k8s.io/queue-name"
_MOST_WORKER_GROUPS = 17


def queued_jobs_can_be_suspended(manifests: list[Manifest]) -> list[str]:
    """Kueue lets a job wait by suspending it: that needs a cluster of its own that ends with it, of fixed size."""
    wrong = []
    for job in _queued(manifests):
        name, spec = job["metadata"]["name"], job["spec"]
        if spec.get("shutdownAfterJobFinishes") is not True or "rayClusterSpec" not in spec:
            wrong.append(f"{name}: cannot be suspended")
            continue
        if spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
            wrong.append(f"{name}: the autoscaler changes what was asked for")
        if len(spec["rayClusterSpec"]["workerGroupSpecs"]) > _MOST_WORKER_GROUPS:
            wrong.append(f"{name}: more than {_MOST_WORKER_GROUPS} worker groups")
    return wrong


def jobs_wait_in_queues_that_exist(manifests: list[Manifest]) -> list[str]:
    """In the namespace of the job."""
    queues = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in of_kind(manifests, "LocalQueue")}
    return [
        f"{metadata['name']}: no queue {metadata['labels'][LABEL]} in {metadata['namespace']}"
        for metadata in (job["metadata"] for job in _queued(manifests))
        if (metadata["namespace"], metadata["labels"][LABEL]) not in queues
    ]


def queues_lead_to_quotas(manifests: list[Manifest]) -> list[str]:
    """From a LocalQueue to a ClusterQueue that takes its namespace, and on to flavors."""
    clusters = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "ClusterQueue")}
    wrong = [
        f"{queue['metadata']['name']}: no ClusterQueue {queue['spec']['clusterQueue']} for its namespace"
        for queue in of_kind(manifests, "LocalQueue")
        if not _takes(clusters.get(queue["spec"]["clusterQueue"], {}), queue["metadata"]["namespace"])
    ]
    flavors = {flavor["metadata"]["name"] for flavor in of_kind(manifests, "ResourceFlavor")}
    used = {flavor["name"] for _, group in _groups(manifests) for flavor in group["flavors"]}
    return wrong + [f"no ResourceFlavor {name}" for name in used - flavors]


def flavors_list_what_is_covered(manifests: list[Manifest]) -> list[str]:
    """Exactly, in the same order."""
    return [
        f"{name}: flavor {flavor['name']} lists {found}, not {group['coveredResources']}"
        for name, group in _groups(manifests)
        for flavor in group["flavors"]
        for found in [[resource["name"] for resource in flavor["resources"]]]
        if found != group["coveredResources"]
    ]


def nothing_is_in_two_groups(manifests: list[Manifest]) -> list[str]:
    """A queue has a resource, and a flavor, in one of its resource groups alone."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, group in _groups(manifests):
        counts.update((name, each) for each in group["coveredResources"])
        counts.update((name, f"flavor {flavor['name']}") for flavor in group["flavors"])
    return [f"{name}: {each} is there {count} times" for (name, each), count in counts.items() if count > 1]


def borrowing_needs_a_cohort(manifests: list[Manifest]) -> list[str]:
    return [
        f"{queue['metadata']['name']}: {limit} of {resource['name']} without cohortName"
        for queue in of_kind(manifests, "ClusterQueue")
        for group in queue["spec"]["resourceGroups"]
        for flavor in group["flavors"]
        for resource in flavor["resources"]
        for limit in ("borrowingLimit", "lendingLimit")
        if limit in resource and "cohortName" not in queue["spec"]
    ]


def preemption_is_consistent(manifests: list[Manifest]) -> list[str]:
    """Who never takes back what was lent cannot evict others while borrowing either."""
    wrong = []
    for queue in of_kind(manifests, "ClusterQueue"):
        preemption = queue["spec"].get("preemption", {})
        borrowing = preemption.get("borrowWithinCohort", {}).get("policy", "Never")
        if preemption.get("reclaimWithinCohort", "Never") == "Never" and borrowing != "Never":
            wrong.append(f"{queue['metadata']['name']}: borrowWithinCohort {borrowing} without reclaimWithinCohort")
        choice = queue["spec"].get("flavorFungibility", {})
        both = {choice.get("whenCanBorrow", "MayStopSearch"), choice.get("whenCanPreempt", "TryNextFlavor")}
        if "preference" in choice and both != {"TryNextFlavor"}:
            wrong.append(f"{queue['metadata']['name']}: a preference needs TryNextFlavor for both")
    return wrong


def flavors_are_whole(manifests: list[Manifest]) -> list[str]:
    """A topology needs labels of its nodes. Ours send no pod to GPU nodes that asks for no GPU."""
    wrong = []
    for flavor in of_kind(manifests, "ResourceFlavor"):
        name, spec = flavor["metadata"]["name"], flavor.get("spec", {})
        if "topologyName" in spec and not spec.get("nodeLabels"):
            wrong.append(f"{name}: a topology without nodeLabels")
        if any("gpu" in label for label in spec.get("nodeLabels", {})):
            wrong.append(f"{name}: sends heads to GPU nodes")
    return wrong


def quotas_hold_one_job(manifests: list[Manifest]) -> list[str]:
    """Whole: head, workers and the pod that submits; a job that is larger than its quota waits for ever."""
    given = {
        resource["name"]: amount(resource["nominalQuota"])
        for _, group in _groups(manifests)
        for resource in group["flavors"][0]["resources"]
    }
    return [
        f"{job['metadata']['name']}: needs {count:g} of {name}, the quota is {given.get(name, 0):g}"
        for job in _queued(manifests)
        for name, count in _needs(manifests, job).items()
        if count > given.get(name, 0)
    ]


def _queued(manifests: list[Manifest]) -> list[Manifest]:
    return [job for job in of_kind(manifests, "RayJob") if LABEL in job["metadata"].get("labels", {})]


def _groups(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Yields every resource group with the name of its ClusterQueue."""
    for queue in of_kind(manifests, "ClusterQueue"):
        for group in queue["spec"]["resourceGroups"]:
            yield queue["metadata"]["name"], group


def _takes(spec: dict[str, Any], namespace: str) -> bool:
    """A queue without namespaceSelector takes nothing; Kubernetes labels every namespace with its name."""
    selector = spec.get("namespaceSelector")
    return selector is not None and selects(selector, {"kubernetes.io/metadata.name": namespace})


def _needs(manifests: list[Manifest], job: Manifest) -> dict[str, float]:
    pods = [each for cluster in ray_clusters(manifests) if cluster.owner is job for each in cluster.pods]
    needed: dict[str, float] = {}
    for each in [*pods, submitter(job)]:
        assert each is not None
        for name, quantity in each.container["resources"]["requests"].items():
            needed[name] = needed.get(name, 0) + amount(quantity) * each.count
    return needed
