"""What `kubectl kustomize` makes of a folder of k8s/, and the pods that come of it."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"

Manifest = dict[str, Any]

_UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_GPU = "nvidia.com/gpu"


def manifests_of(folder: Path) -> list[Manifest]:
    """Returns the manifests of a kustomization, as `kubectl apply -k` would send them: the caller's to change."""
    return copy.deepcopy(_kustomize(folder))


@cache
def _kustomize(folder: Path) -> list[Manifest]:
    assert shutil.which("kubectl"), "kubectl is missing; install it in version 1.27 or newer"
    made = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert (made.returncode, made.stderr) == (0, "")
    return [manifest for manifest in yaml.safe_load_all(made.stdout) if manifest is not None]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def ray_service(manifests: list[Manifest]) -> Manifest:
    (found,) = of_kind(manifests, "RayService")
    return found


def amount(quantity: object) -> float:
    """Returns what Kubernetes' `500m` or `8Gi` means."""
    text = str(quantity)
    number = text.rstrip("mkMGTi")
    return float(number) * _UNITS[text[len(number) :]]


@dataclass(frozen=True)
class Pods:
    """Equal pods: how many, and what each is. `owner` is the name of the resource that asks for them."""

    name: str
    count: int
    labels: dict[str, str]
    spec: Manifest
    owner: str
    ray_group: Manifest | None = None

    @property
    def container(self) -> Manifest:
        """The only container, or that of Ray."""
        first: Manifest = self.spec["containers"][0]
        return first

    @property
    def is_head(self) -> bool:
        return self.ray_group is not None and "groupName" not in self.ray_group

    @property
    def resources(self) -> dict[str, Any]:
        """Requests, with limits above them where limits are set."""
        return {**self.container["resources"].get("requests", {}), **self.container["resources"].get("limits", {})}

    @property
    def num_gpus(self) -> float:
        return amount(self.resources.get(_GPU, 0))

    @property
    def env(self) -> dict[str, Manifest]:
        """The variables of the first container, each with its `value` or `valueFrom`."""
        return {variable["name"]: variable for variable in self.container.get("env", [])}

    @property
    def free_memory_bytes(self) -> float:
        """What a full /dev/shm leaves of the pod's memory."""
        shared = [volume.get("emptyDir", {}).get("sizeLimit", 0) for volume in self.spec.get("volumes", [])]
        return amount(self.resources["memory"]) - sum(amount(size) for size in shared)

    def mounts(self) -> Iterator[tuple[Manifest, Manifest]]:
        """Yields every mount of the first container with its volume."""
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        for mount in self.container.get("volumeMounts", []):
            if mount["name"] in volumes:
                yield mount, volumes[mount["name"]]

    def ray_capacity(self) -> dict[str, float]:
        """Returns what Ray counts on such a pod, as the operator starts it."""
        assert self.ray_group is not None
        params = self.ray_group.get("rayStartParams", {})
        custom = {name: amount(quantity) for name, quantity in self.ray_group.get("resources", {}).items()}
        cpus = float(params.get("num-cpus", amount(self.resources["cpu"])))
        return {"CPU": cpus, "GPU": float(params.get("num-gpus", self.num_gpus)), **custom}


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster as a RayService or a RayJob describes it."""

    owner: Manifest
    spec: Manifest

    @property
    def name(self) -> str:
        """The name of the owner: the operator makes the cluster's of it."""
        name: str = self.owner["metadata"]["name"]
        return name

    @property
    def serves(self) -> bool:
        return bool(self.owner["kind"] == "RayService")

    @property
    def groups(self) -> list[Manifest]:
        """The head's group, then those of the workers."""
        return [self.spec["headGroupSpec"], *self.spec["workerGroupSpecs"]]

    @property
    def pods(self) -> list[Pods]:
        """The head, then the workers."""
        return [
            Pods(
                name=f"{self.name}/{group.get('groupName', 'head')}",
                count=group.get("replicas", 1) * group.get("numOfHosts", 1),
                labels=group["template"]["metadata"]["labels"],
                spec=group["template"]["spec"],
                owner=self.name,
                ray_group=group,
            )
            for group in self.groups
        ]


def ray_clusters(manifests: list[Manifest]) -> list[RayCluster]:
    """Returns the cluster of every RayService, and of every RayJob that makes one."""
    fields = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}
    return [
        RayCluster(manifest, manifest["spec"][fields[manifest["kind"]]])
        for manifest in manifests
        if fields.get(manifest["kind"]) in manifest.get("spec", {})
    ]


def service_cluster(manifests: list[Manifest]) -> RayCluster:
    """Returns the cluster of the one RayService."""
    (found,) = [cluster for cluster in ray_clusters(manifests) if cluster.serves]
    return found


def ray_pods(manifests: list[Manifest]) -> list[Pods]:
    """Returns the pods of all Ray clusters."""
    return [pods for cluster in ray_clusters(manifests) for pods in cluster.pods]


def submitter(job: Manifest) -> Pods | None:
    """Returns the pod that submits a RayJob, None where the manifest does not describe one."""
    template, name = job["spec"].get("submitterPodTemplate"), job["metadata"]["name"]
    if template is None:
        return None
    return Pods(f"{name}/submitter", 1, template["metadata"]["labels"], template["spec"], owner=name)


def all_pods(manifests: list[Manifest]) -> list[Pods]:
    """Returns the pods of every owner; StatefulSets' claims count as volumes."""
    plain = [_pods(manifest) for manifest in manifests if manifest["kind"] in ("StatefulSet", "Job")]
    submitting = [pods for job in of_kind(manifests, "RayJob") if (pods := submitter(job)) is not None]
    return plain + submitting + ray_pods(manifests)


def _pods(owner: Manifest) -> Pods:
    name, template = owner["metadata"]["name"], owner["spec"]["template"]
    claims = [
        {"name": claim["metadata"]["name"], "ownClaim": claim}
        for claim in owner["spec"].get("volumeClaimTemplates", [])
    ]
    spec = {**template["spec"], "volumes": [*template["spec"].get("volumes", []), *claims]}
    return Pods(name, owner["spec"].get("replicas", 1), template["metadata"]["labels"], spec, owner=name)
