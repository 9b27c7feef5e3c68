"""Rules of RayJobs: what the operator refuses beyond their schema, or takes and does not do; and what they run."""

from __future__ import annotations

from urllib.parse import urlsplit

from ray_cluster.job_client import GRACE_VARIABLE
from serve_app.cli import build_parser
from serve_app.commands.submit import STOP_GRACE_S
from tests.k8s.entrypoints import command_line, flags, runtime_environment
from tests.k8s.manifests import Manifest, of_kind, ray_clusters, ray_pods, service_cluster, submitter
from tests.k8s.network_rules import API_PORT, admits
from tests.k8s.serve_rules import service_config

_SELECTOR = "ray.io/cluster"
_OF_OWN_CLUSTERS = (
    "backoffLimit",
    "suspend",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "deletionStrategy",
    "activeDeadlineSeconds",
)
_LONGEST_IDLE_S = 600
_DEADLINES = ("preRunningDeadlineSeconds", "activeDeadlineSeconds")
_AROUND_THE_ENTRYPOINT = ("entrypointNumCpus", "entrypointNumGpus", "entrypointResources")


def jobs_name_one_cluster(manifests: list[Manifest]) -> list[str]:
    """A cluster of their own, or the one whose name stands under the one key that the operator reads."""
    wrong = []
    for name, spec in _jobs(manifests):
        selector = spec.get("clusterSelector")
        if ("rayClusterSpec" in spec) == (selector is not None):
            wrong.append(f"{name}: not exactly one of rayClusterSpec and clusterSelector")
        if selector is not None and (set(selector) != {_SELECTOR} or not selector[_SELECTOR]):
            wrong.append(f"{name}: clusterSelector {selector} has not the name of a RayCluster under {_SELECTOR} alone")
    return wrong


def clusters_of_others_are_left_alone(manifests: list[Manifest]) -> list[str]:
    """The operator refuses retries and suspension there, ignores whatever ends a cluster, and leaves a driver whose
    time is over running."""
    return [
        f"{name}: {field} is not for a cluster that the job only uses"
        for name, spec in _jobs(manifests)
        for field in _OF_OWN_CLUSTERS
        if "clusterSelector" in spec and field in spec
    ]


def own_clusters_end_with_their_jobs(manifests: list[Manifest]) -> list[str]:
    """Soon after; by the one flag that Kueue understands too, which excludes deletion rules."""
    wrong = []
    for name, spec in _jobs(manifests):
        if "rayClusterSpec" not in spec:
            continue
        if spec.get("shutdownAfterJobFinishes") is not True:
            wrong.append(f"{name}: its cluster stays for ever")
        if not 0 <= spec.get("ttlSecondsAfterFinished", 0) <= _LONGEST_IDLE_S:
            wrong.append(
                f"{name}: ttlSecondsAfterFinished {spec['ttlSecondsAfterFinished']}: GPUs idle, or it is refused"
            )
        wrong += [f"{name}: {field} is not for us" for field in ("deletionStrategy", "suspend") if field in spec]
    return wrong


def retries_are_counted(manifests: list[Manifest]) -> list[str]:
    """Each is a cluster that starts anew: one costs minutes of all GPUs, many a night."""
    limits = {name: spec.get("backoffLimit", 0) for name, spec in _jobs(manifests)}
    return [f"{name}: backoffLimit {limit}" for name, limit in limits.items() if not 0 <= limit <= 2]


def deadlines_are_set_and_in_order(manifests: list[Manifest]) -> list[str]:
    """Positive; pods that never come are given up before the run would be."""
    wrong = []
    for name, spec in _jobs(manifests):
        wanted = _DEADLINES if "rayClusterSpec" in spec else _DEADLINES[:1]
        found = [spec.get(field, 0) for field in wanted]
        if min(found) <= 0 or found != sorted(set(found)):
            wrong.append(f"{name}: {wanted} are {found}")
    return wrong


def submitters_are_pods_of_ours(manifests: list[Manifest]) -> list[str]:
    """The operator's own pod has no security context, and the namespace refuses it. Its command is the operator's,
    which looks whether the job is there before it submits."""
    wrong = []
    for job in of_kind(manifests, "RayJob"):
        name, spec, pods = job["metadata"]["name"], job["spec"], submitter(job)
        if spec.get("submissionMode", "K8sJobMode") != "K8sJobMode":
            wrong.append(f"{name}: submissionMode {spec['submissionMode']}")
        if pods is None:
            wrong.append(f"{name}: no submitterPodTemplate")
            continue
        if pods.spec.get("restartPolicy") != "Never":
            wrong.append(f"{pods.name}: restartPolicy is not Never")
        if pods.container.get("command") or pods.container.get("args"):
            wrong.append(f"{pods.name}: a command of ours would submit twice")
        if {pods.container["image"]} != {each.container["image"] for each in ray_pods(manifests)}:
            wrong.append(f"{pods.name}: {pods.container['image']} is not the image of the cluster")
    return wrong


def entrypoints_are_bulk_runs(manifests: list[Manifest]) -> list[str]:
    """On the head, in the image as it is."""
    wrong = []
    for job in of_kind(manifests, "RayJob"):
        name, spec, words = job["metadata"]["name"], job["spec"], command_line(job)
        if words[:3] != ["live-avatar", "bulk", "run"]:
            wrong.append(f"{name}: {words[:3]} is no bulk run")
        wrong += [f"{name}: {field} moves the driver" for field in _AROUND_THE_ENTRYPOINT if field in spec]
        if set(runtime_environment(job)) - {"env_vars"}:
            wrong.append(f"{name}: runtimeEnvYAML changes the image at run time")
    return wrong


def drivers_have_time_to_stop(manifests: list[Manifest]) -> list[str]:
    """As much as one that `live-avatar submit` sends, to end its rows and write its reports."""
    times = {
        job["metadata"]["name"]: runtime_environment(job).get("env_vars", {}).get(GRACE_VARIABLE)
        for job in of_kind(manifests, "RayJob")
    }
    return [
        f"{name}: {GRACE_VARIABLE} is {time_s!r}, not {STOP_GRACE_S} in quotes"
        for name, time_s in times.items()
        if time_s != str(STOP_GRACE_S)
    ]


def a_drivers_own_ray_outlives_its_stop(manifests: list[Manifest]) -> list[str]:
    """A private Ray descends from the driver, and gets the signal too: SIGTERM ends it, SIGINT is blocked there."""
    return [
        f"{job['metadata']['name']}: its Ray ends with the signal that stops its driver"
        for job in of_kind(manifests, "RayJob")
        if "--address" not in flags(job)
        and runtime_environment(job).get("env_vars", {}).get("RAY_JOB_STOP_SIGNAL") != "SIGINT"
    ]


def the_command_takes_its_entrypoints(manifests: list[Manifest]) -> list[str]:
    return [
        f"{job['metadata']['name']}: {command_line(job)} is not understood"
        for job in of_kind(manifests, "RayJob")
        if not _is_understood(command_line(job)[1:])
    ]


def what_is_done_outlives_the_cluster(manifests: list[Manifest]) -> list[str]:
    """Pods have no disk that stays: manifest and results are in object storage."""
    return [
        f"{job['metadata']['name']}: {place} is gone with its pod"
        for job in of_kind(manifests, "RayJob")
        for place in (command_line(job)[3], flags(job).get("--out", "."))
        if not place.startswith("s3://")
    ]


def drivers_find_their_groups(manifests: list[Manifest]) -> list[str]:
    """On a cluster of its own a job makes them; on the service's it asks the API, by a name that the API answers to."""
    wrong = []
    for name, job in ((job["metadata"]["name"], job) for job in of_kind(manifests, "RayJob")):
        said, is_shared = flags(job), "clusterSelector" in job["spec"]
        if said.get("--pool", "own") != ("serve" if is_shared else "own"):
            wrong.append(f"{name}: --pool {said.get('--pool', 'own')}")
        if is_shared:
            wrong += [f"{name}: {problem}" for problem in _why_not_reached(manifests, said.get("--url", ""))]
        elif said.get("--address") != "auto":
            wrong.append(f"{name}: does not use the cluster that it is submitted to")
    return wrong


def _why_not_reached(manifests: list[Manifest], url: str) -> list[str]:
    """The driver runs on the head: its requests come from there."""
    head, *workers = service_cluster(manifests).pods
    where = urlsplit(url)
    wrong = [] if where.hostname in service_config(manifests).allowed_hosts else [f"the API does not answer to {url!r}"]
    ports = {port["name"]: port["containerPort"] for port in head.container["ports"]}
    if where.scheme != "http" or where.port != ports.get(API_PORT):
        wrong.append(f"the API does not listen on {url!r}")
    return wrong + [f"{each.name} refuses the head" for each in workers if not admits(manifests, head, each, API_PORT)]


def drivers_and_groups_have_keys(manifests: list[Manifest]) -> list[str]:
    """Drivers read manifests and write results; the groups of a job's own cluster fetch inputs and store videos."""
    users = [pods for cluster in ray_clusters(manifests) if not cluster.serves for pods in cluster.pods]
    if any("clusterSelector" in spec for _, spec in _jobs(manifests)):
        users.append(service_cluster(manifests).pods[0])
    needed = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
    return [f"{pods.name}: has no {name}" for pods in users for name in needed if name not in pods.env]


def _is_understood(arguments: list[str]) -> bool:
    try:
        build_parser().parse_args(arguments)
    except SystemExit:
        return False
    return True


def _jobs(manifests: list[Manifest]) -> list[tuple[str, Manifest]]:
    return [(job["metadata"]["name"], job["spec"]) for job in of_kind(manifests, "RayJob")]
