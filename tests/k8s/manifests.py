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


def ray_cluster(manifests: list[Manifest]) -> Manifest:
    """Returns the specification of the Ray cluster inside the RayService."""
    cluster: Manifest = ray_service(manifests)["spec"]["rayClusterConfig"]
    return cluster


def ray_groups(manifests: list[Manifest]) -> list[Manifest]:
    """Returns the head's group, then those of the workers."""
    cluster = ray_cluster(manifests)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def amount(quantity: object) -> float:
    """Returns what Kubernetes' `500m` or `8Gi` means."""
    text = str(quantity)
    number = text.rstrip("mkMGTi")
    return float(number) * _UNITS[text[len(number) :]]


@dataclass(frozen=True)
class Pods:
    """Equal pods: how many, and what each is."""

    name: str
    count: int
    labels: dict[str, str]
    spec: Manifest
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


def all_pods(manifests: list[Manifest]) -> list[Pods]:
    """Returns the pods of every owner; StatefulSets' claims count as volumes."""
    found = []
    for manifest in manifests:
        match manifest["kind"]:
            case "RayService":
                found += ray_pods(manifests)
            case "StatefulSet" | "Job":
                found.append(_pods(manifest))
    return found


def ray_pods(manifests: list[Manifest]) -> list[Pods]:
    return [
        Pods(
            name=group.get("groupName", "head"),
            count=group.get("replicas", 1) * group.get("numOfHosts", 1),
            labels=group["template"]["metadata"]["labels"],
            spec=group["template"]["spec"],
            ray_group=group,
        )
        for group in ray_groups(manifests)
    ]


def _pods(owner: Manifest) -> Pods:
    template = owner["spec"]["template"]
    claims = [
        {"name": claim["metadata"]["name"], "ownClaim": claim}
        for claim in owner["spec"].get("volumeClaimTemplates", [])
    ]
    spec = {**template["spec"], "volumes": [*template["spec"].get("volumes", []), *claims]}
    return Pods(owner["metadata"]["name"], owner["spec"].get("replicas", 1), template["metadata"]["labels"], spec)
