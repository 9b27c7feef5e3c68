"""Rules that join the service's settings with its pods: what runs where, and how groups leave."""

from __future__ import annotations

from ray_cluster.bundles import Strategy
from ray_cluster.placement import fits
from serve_app.deployments.render_group import group_bundles
from serve_app.schemas.service import PoolConfig
from tests.k8s.group_rules import drain_s, fits_on, grace_s
from tests.k8s.manifests import Manifest, Pods, service_cluster
from tests.k8s.serve_rules import deployments, service_config


def one_pod_alone_carries_the_control(manifests: list[Manifest]) -> list[str]:
    """The job store is a file of SQLite: everything that opens it is on the one node with the control resource."""
    name = service_config(manifests).control_resource
    if name is None:
        return ["control_resource is not set"]
    carriers = [pods for pods in service_cluster(manifests).pods if pods.ray_capacity().get(name, 0) > 0]
    return [] if [pods.count for pods in carriers] == [1] else [f"{name} is on {[pods.name for pods in carriers]}"]


def deployments_find_their_resources(manifests: list[Manifest]) -> list[str]:
    """Dispatcher and API fit beside whatever else the control pod carries."""
    wanted: dict[str, float] = {}
    for deployment in deployments(manifests):
        for name, share in deployment.actor_resources.items():
            if not deployment.has_placement_group:
                wanted[name] = wanted.get(name, 0) + share * deployment.num_replicas
    control = [pods for pods in service_cluster(manifests).pods if pods.ray_group and pods.ray_group.get("resources")]
    for pods in control:
        for pool in _pools_on(manifests, pods):
            wanted["CPU"] += group_bundles(pool).total()["CPU"] * pool.max_groups
    return [
        f"{pods.name}: {wanted} does not fit {pods.ray_capacity()}"
        for pods in control
        if not fits([wanted], Strategy.STRICT_PACK, [pods.ray_capacity()])
    ]


def groups_see_their_files(manifests: list[Manifest]) -> list[str]:
    """Data for reading and writing, wherever there is work."""
    data_dir = str(service_config(manifests).data_dir)
    return [
        f"{pods.name}: cannot write {data_dir}"
        for pods in service_cluster(manifests).pods
        if not pods.is_head
        and data_dir not in {mount["mountPath"] for mount, _ in pods.mounts() if not mount.get("readOnly")}
    ]


def pods_leave_when_their_videos_are_done(manifests: list[Manifest]) -> list[str]:
    """drain_s < what Ray gives its node <= what Serve gives a group < what Kubernetes gives the pod.

    Serve begins to drain when the node has no more time left than the group may take.
    """
    video_s = service_config(manifests).times.drain_s
    group_s = {each.name: each.shutdown_s for each in deployments(manifests)}
    wrong = []
    for pods in service_cluster(manifests).pods:
        for pool in _pools_on(manifests, pods):
            ray_s, longest_s, pod_s = drain_s(pods), group_s[f"group-{pool.name}"], grace_s(pods)
            if not video_s < ray_s <= longest_s < pod_s:
                wrong.append(f"{pods.name}: {video_s:g} < {ray_s:g} <= {longest_s:g} < {pod_s:g} s does not hold")
    return wrong


def _pools_on(manifests: list[Manifest], pods: Pods) -> list[PoolConfig]:
    return [pool for pool in service_config(manifests).pools if fits_on(pool, pods)]
