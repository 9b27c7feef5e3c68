"""Rules for the configuration of Serve inside the RayService, which Ray itself reads without minding unknown keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from ray.serve import Deployment
from ray.serve._private.build_app import build_app as list_deployments
from ray.serve.schema import ServeDeploySchema

from serve_app.api import flow_proxy
from serve_app.app import build_app
from serve_app.schemas.service import ServiceConfig
from tests.k8s.manifests import ROOT, Manifest, ray_clusters, ray_service, service_cluster

_LOCAL = {"localhost", "127.0.0.1", "[::1]"}


@dataclass(frozen=True)
class Deployed:
    """What the rules ask of one deployment."""

    name: str
    num_replicas: int
    actor_resources: dict[str, float]
    has_placement_group: bool
    shutdown_s: float


def serve_settings(manifests: list[Manifest]) -> Manifest:
    settings: Manifest = yaml.safe_load(ray_service(manifests)["spec"]["serveConfigV2"])
    return settings


def service_config(manifests: list[Manifest]) -> ServiceConfig:
    """Returns the settings of the one application."""
    (application,) = serve_settings(manifests)["applications"]
    return ServiceConfig.from_settings(application["args"])


def deployments(manifests: list[Manifest]) -> list[Deployed]:
    """Returns what the application deploys."""
    built = list_deployments(build_app(service_config(manifests)), name="live-avatar")
    return [_deployed(deployment) for deployment in built.deployments]


def serve_knows_every_key(manifests: list[Manifest]) -> list[str]:
    settings = serve_settings(manifests)
    ServeDeploySchema.model_validate(settings)
    return [f"serveConfigV2: unknown key {path}" for path in unknown_keys(ServeDeploySchema, settings)]


def unknown_keys(model: type[BaseModel], settings: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yields the path of every key that no field of the model, or of the models inside it, takes."""
    for key, value in settings.items():
        field = model.model_fields.get(key)
        if field is None:
            yield f"{path}{key}"
            continue
        inner = next(_models_of(field.annotation), None)
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            if inner is not None and isinstance(item, dict):
                where = f"{path}{key}[{index}]." if isinstance(value, list) else f"{path}{key}."
                yield from unknown_keys(inner, item, where)


def the_application_is_ours(manifests: list[Manifest]) -> list[str]:
    applications = [(each["import_path"], each["route_prefix"]) for each in serve_settings(manifests)["applications"]]
    return [] if applications == [("serve_app.app:build_app", "/")] else [f"applications {applications}"]


def the_application_deploys_its_parts(manifests: list[Manifest]) -> list[str]:
    """Its settings are those of ServiceConfig, and it can be built from them."""
    pools = [f"group-{pool.name}" for pool in service_config(manifests).pools]
    found = [deployment.name for deployment in deployments(manifests)]
    return [] if sorted(found) == sorted(["Ingress", "Dispatcher", *pools]) else [f"deploys {found}"]


def the_api_answers_to_its_names(manifests: list[Manifest]) -> list[str]:
    """The names that the service of the API has inside the cluster, and no others but this machine's."""
    metadata = ray_service(manifests)["metadata"]
    service, namespace = f"{metadata['name']}-serve-svc", metadata["namespace"]
    names = {
        service,
        f"{service}.{namespace}",
        f"{service}.{namespace}.svc",
        f"{service}.{namespace}.svc.cluster.local",
    }
    found = set(service_config(manifests).allowed_hosts)
    return [] if found - _LOCAL == names else [f"allowed_hosts {sorted(found)}, not {sorted(names)}"]


def serve_listens_on_the_pods_port(manifests: list[Manifest]) -> list[str]:
    http = serve_settings(manifests)["http_options"]
    ports = {
        port["containerPort"]
        for pods in service_cluster(manifests).pods
        for port in pods.container["ports"]
        if port["name"] == "serve"
    }
    return [] if ports == {http["port"]} and http["host"] == "0.0.0.0" else [f"Serve on {http}, pods on {ports}"]


def proxies_tell_what_clients_have_taken(manifests: list[Manifest]) -> list[str]:
    """Every pod may have a proxy of Serve's; one that tells nothing lets a client that does not read cost memory."""
    return [
        f"{pods.name} does not set {flow_proxy.SETTING}"
        for pods in service_cluster(manifests).pods
        if {"name": flow_proxy.SETTING, "value": flow_proxy.IMPORT_PATH} not in pods.container.get("env", [])
    ]


def ray_is_of_the_version_of_the_image(manifests: list[Manifest]) -> list[str]:
    pinned = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    versions = [cluster.spec["rayVersion"] for cluster in ray_clusters(manifests)]
    return [f"rayVersion {version}, the image has {pinned}" for version in versions if [version] != pinned]


def _deployed(deployment: Deployment) -> Deployed:
    options = deployment.ray_actor_options or {}
    return Deployed(
        name=deployment.name,
        num_replicas=deployment.num_replicas or 1,
        actor_resources={"CPU": options.get("num_cpus", 0), **options.get("resources", {})},
        has_placement_group=deployment._replica_config.placement_group_bundles is not None,
        shutdown_s=deployment._deployment_config.graceful_shutdown_timeout_s,
    )


def _models_of(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_of(part)
