"""Rules for every pod: no privileges, no token, counted resources, volumes and secrets that exist."""

from __future__ import annotations

import re

from tests.k8s.entrypoints import runtime_environment
from tests.k8s.manifests import K8S, Manifest, Pods, all_pods, amount, of_kind, ray_clusters

_SECRET = re.compile("KEY|SECRET|TOKEN|PASSWORD")
_SOURCES = {"secretKeyRef": "secret", "configMapKeyRef": "configmap"}


def pods_have_no_privileges(manifests: list[Manifest]) -> list[str]:
    """As the level `restricted` of Kubernetes' pod security demands."""
    wrong = []
    for pods in all_pods(manifests):
        of_pod = pods.spec.get("securityContext", {})
        if of_pod.get("runAsNonRoot") is not True or of_pod.get("runAsUser", 0) == 0:
            wrong.append(f"{pods.name}: may run as root")
        if of_pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
            wrong.append(f"{pods.name}: has no seccomp profile")
        for container in pods.spec["containers"]:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
                wrong.append(f"{pods.name}/{container['name']}: keeps privileges")
    return wrong


def pods_have_no_token_for_kubernetes(manifests: list[Manifest]) -> list[str]:
    accounts = {account["metadata"]["name"] for account in of_kind(manifests, "ServiceAccount")}
    return [
        f"{pods.name}: gets a token"
        for pods in all_pods(manifests)
        if pods.spec.get("automountServiceAccountToken") is not False or pods.spec["serviceAccountName"] not in accounts
    ]


def pods_say_what_they_need(manifests: list[Manifest]) -> list[str]:
    """CPU and memory are asked for, and no pod takes more memory than it asked for."""
    wrong = []
    for pods in all_pods(manifests):
        for container in pods.spec["containers"]:
            resources = container.get("resources", {})
            asked, allowed = resources.get("requests", {}), resources.get("limits", {})
            if not {"cpu", "memory"} <= set(asked) or asked["memory"] != allowed.get("memory"):
                wrong.append(f"{pods.name}/{container['name']}: resources {resources}")
    return wrong


def images_are_pinned(manifests: list[Manifest]) -> list[str]:
    return [
        f"{pods.name}: {container['image']} has no version"
        for pods in all_pods(manifests)
        for container in pods.spec["containers"]
        if not re.search(r":\d+\.\d+\.\d+$", container["image"])
    ]


def volumes_exist_and_go_where_they_are_used(manifests: list[Manifest]) -> list[str]:
    claims = {claim["metadata"]["name"]: claim for claim in of_kind(manifests, "PersistentVolumeClaim")}
    wrong = []
    users: dict[str, int] = dict.fromkeys(claims, 0)
    for pods in all_pods(manifests):
        mounted = {mount["name"] for mount in pods.container.get("volumeMounts", [])}
        volumes = {volume["name"] for volume in pods.spec.get("volumes", [])}
        if mounted != volumes:
            wrong.append(f"{pods.name}: mounts {sorted(mounted)}, has volumes {sorted(volumes)}")
        for name in _claims(pods):
            if name in claims:
                users[name] += pods.count
            else:
                wrong.append(f"{pods.name}: claim {name} does not exist")
    wrong += [f"claim {name} is not used" for name, count in users.items() if count == 0]
    shared = [name for name, count in users.items() if count > 1]
    wrong += [
        f"claim {name} is for one node, but {users[name]} pods use it"
        for name in shared
        if claims[name]["spec"]["accessModes"] != ["ReadWriteMany"]
    ]
    return wrong


def ray_has_the_shared_memory_that_it_counts_on(manifests: list[Manifest]) -> list[str]:
    """Ray's object store lies in /dev/shm beside NCCL's buffers, and all of it counts as the container's memory."""
    wrong = []
    for pods in all_pods(manifests):
        if pods.ray_group is None:
            continue
        store = float(pods.ray_group.get("rayStartParams", {}).get("object-store-memory", "inf"))
        shared = [volume.get("emptyDir", {}) for mount, volume in pods.mounts() if mount["mountPath"] == "/dev/shm"]
        sizes = [amount(volume.get("sizeLimit", 0)) for volume in shared if volume.get("medium") == "Memory"]
        memory = amount(pods.resources.get("memory", 0))
        if len(sizes) != 1 or not store < sizes[0] < memory:
            wrong.append(f"{pods.name}: object store {store:g}, /dev/shm {sizes}, memory {memory:g} do not rise")
    return wrong


def secrets_are_told(manifests: list[Manifest]) -> list[str]:
    """k8s/README.md has the command that makes every secret and every ConfigMap, with its keys."""
    made = _told()
    return [
        f"{kind} {name}, key {key}: README.md does not make it" for kind, name, key in _references(manifests) - made
    ]


def no_secret_is_written_down(manifests: list[Manifest]) -> list[str]:
    """Not as a Secret, and not as the value of a variable, of a pod or of a runtime environment, which Ray shows."""
    wrong = [f"Secret {manifest['metadata']['name']} is in the manifests" for manifest in of_kind(manifests, "Secret")]
    wrong += [
        f"{pods.name}: the value of {name} is in the manifests"
        for pods in all_pods(manifests)
        for name, variable in pods.env.items()
        if _SECRET.search(name) and "secretKeyRef" not in variable.get("valueFrom", {})
    ]
    return wrong + [
        f"{job['metadata']['name']}: runtimeEnvYAML shows {name}"
        for job in of_kind(manifests, "RayJob")
        for name in runtime_environment(job).get("env_vars", {})
        if _SECRET.search(name)
    ]


def _claims(pods: Pods) -> list[str]:
    return [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pods.spec.get("volumes", [])
        if "persistentVolumeClaim" in volume
    ]


def _told() -> set[tuple[str, str, str]]:
    text = (K8S / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    made = re.findall(r"create (secret generic|configmap) (\S+)(.*)", text)
    return {
        ("secret" if "secret" in kind else "configmap", name, key)
        for kind, name, rest in made
        for key in re.findall(r"--from-literal=(\w+)=", rest)
    }


def _references(manifests: list[Manifest]) -> set[tuple[str, str, str]]:
    clusters = ray_clusters(manifests)
    sources = [cluster.spec.get("gcsFaultToleranceOptions", {}).get("redisPassword", {}) for cluster in clusters]
    containers = [container for pods in all_pods(manifests) for container in pods.spec["containers"]]
    sources += [variable for container in containers for variable in container.get("env", [])]
    found = {
        (_SOURCES[field], reference["name"], reference["key"])
        for source in sources
        for field, reference in source.get("valueFrom", {}).items()
    }
    # The operator reads Ray's token under this key.
    return found | {("secret", cluster.spec["authOptions"]["secretName"], "auth_token") for cluster in clusters}
