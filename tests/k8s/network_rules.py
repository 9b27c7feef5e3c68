"""Rules of who reaches whom, and of how many may leave at once."""

from __future__ import annotations

from tests.k8s.manifests import (
    Manifest,
    Pods,
    RayCluster,
    all_pods,
    of_kind,
    ray_clusters,
    service_cluster,
    submitter,
)

CLIENT = {"live-avatar-client": "true"}
API_PORT = "serve"
_KEY = "AWS_ACCESS_KEY_ID"
_LINK_LOCAL = {"169.254.0.0/16", "fd00:ec2::254/128", "fe80::/10"}
_OPERATOR = {
    "namespaceSelector": {},
    "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
}


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Says whether a label selector of Kubernetes takes these labels; an empty one takes all."""
    exact = all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
    return exact and all(_holds(expression, labels) for expression in selector.get("matchExpressions", []))


def selectors_match_pods(manifests: list[Manifest]) -> list[str]:
    pods = all_pods(manifests)
    return [
        f"{manifest['kind']} {manifest['metadata']['name']}: {selector} selects nothing"
        for manifest in manifests
        for selector in _selectors(manifest)
        if not any(selects(selector, each.labels) for each in pods)
    ]


def owners_select_their_own_pods(manifests: list[Manifest]) -> list[str]:
    return [
        f"{owner['metadata']['name']}: does not select its own pods"
        for owner in of_kind(manifests, "StatefulSet")
        if not selects(owner["spec"]["selector"], owner["spec"]["template"]["metadata"]["labels"])
    ]


def ports_are_those_of_the_selected_pods(manifests: list[Manifest]) -> list[str]:
    """Ports of services, and those that policies admit, are named as the containers name them."""
    wrong = []
    for selector, name, owner in _named_ports(manifests):
        missing = [
            pods.name
            for pods in all_pods(manifests)
            if selects(selector, pods.labels) and name not in {port["name"] for port in pods.container.get("ports", [])}
        ]
        wrong += [f"{owner}: {pods} has no port {name}" for pods in missing]
    return wrong


def every_pod_is_closed_both_ways(manifests: list[Manifest]) -> list[str]:
    policies = of_kind(manifests, "NetworkPolicy")
    return [
        f"{pods.name}: no policy closes {direction}"
        for pods in all_pods(manifests)
        for direction in ("Ingress", "Egress")
        if not any(
            direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], pods.labels)
            for policy in policies
        )
    ]


def only_labelled_clients_reach_the_api(manifests: list[Manifest]) -> list[str]:
    """There are no keys: from outside, Ray's workers are reached on the API's port alone, by pods with the label."""
    wrong = [
        f"{manifest['kind']} {manifest['metadata']['name']} opens the API to everybody"
        for manifest in manifests
        if manifest["kind"] == "Ingress" or manifest.get("spec", {}).get("type") in ("NodePort", "LoadBalancer")
    ]
    door = {"from": [{"podSelector": {"matchLabels": CLIENT}}], "ports": [{"port": API_PORT}]}
    for cluster in ray_clusters(manifests):
        wanted = [door] if cluster.serves else []
        for pods in cluster.pods[1:]:
            found = _doors(manifests, cluster, pods)
            wrong += [f"{pods.name}: admits {each}" for each in found if each not in wanted]
    return wrong


def labelled_clients_do_reach_the_api(manifests: list[Manifest]) -> list[str]:
    """The service of the API stands for every worker that is ready."""
    return [
        f"{pods.name}: refuses clients"
        for pods in service_cluster(manifests).pods[1:]
        if not any(
            selects(peer.get("podSelector", {}), CLIENT)
            for rule in _rules(manifests, pods, "ingress")
            for peer in rule.get("from", [])
        )
    ]


def only_operator_and_submitters_reach_a_head(manifests: list[Manifest]) -> list[str]:
    """The operator gives Ray its configuration and asks how jobs are, over the dashboard's port."""
    submitting = [pods.labels for job in of_kind(manifests, "RayJob") if (pods := submitter(job)) is not None]
    wrong = []
    for cluster in ray_clusters(manifests):
        doors = _doors(manifests, cluster, cluster.pods[0])
        peers = [peer for door in doors for peer in door.get("from", [{}])]
        if any(door.get("ports") != [{"port": "dashboard"}] for door in doors):
            wrong.append(f"{cluster.name}: the head admits {doors}")
        wrong += [
            f"{cluster.name}: the head admits {peer}"
            for peer in peers
            if peer != _OPERATOR and not (_is_ours(peer) and any(selects(peer["podSelector"], it) for it in submitting))
        ]
        if _OPERATOR not in peers:
            wrong.append(f"{cluster.name}: the head refuses the operator")
    return wrong


def submitters_reach_the_head(manifests: list[Manifest]) -> list[str]:
    wrong = []
    for job in of_kind(manifests, "RayJob"):
        (head, *_) = cluster_of(manifests, job).pods
        source = submitter(job)
        if source is not None and not admits(manifests, source, head, "dashboard"):
            wrong.append(f"{source.name}: does not reach {head.name}")
    return wrong


def only_object_storage_is_outside(manifests: list[Manifest]) -> list[str]:
    """Pods with its keys speak to the world, encrypted, but not to where a cloud gives out credentials; nobody else."""
    return [
        f"{pods.name}: may go to {rule}"
        for pods in all_pods(manifests)
        for rule in _rules(manifests, pods, "egress")
        if _leads_outside(rule) and not _is_dns(rule) and not (_KEY in pods.env and _is_guarded(rule))
    ]


def pods_with_keys_reach_object_storage(manifests: list[Manifest]) -> list[str]:
    """So does every driver; a head that may have keys and has no job need not."""
    users = [pods for pods in all_pods(manifests) if _KEY in pods.env and not _is_optional(pods.env[_KEY])]
    users += [cluster_of(manifests, job).pods[0] for job in of_kind(manifests, "RayJob")]
    return [
        f"{pods.name}: does not reach object storage"
        for pods in users
        if not any(_leads_outside(rule) and _is_guarded(rule) for rule in _rules(manifests, pods, "egress"))
    ]


def admits(manifests: list[Manifest], source: Pods, target: Pods, port: str) -> bool:
    """Says whether the policies let `source` open connections to a named port of `target`."""
    leaves = any(_opens(rule, "to", target, port) for rule in _rules(manifests, source, "egress"))
    return leaves and any(_opens(rule, "from", source, port) for rule in _rules(manifests, target, "ingress"))


def cluster_of(manifests: list[Manifest], job: Manifest) -> RayCluster:
    """Returns the cluster that a RayJob makes, or else that of the service, which it is submitted to."""
    own = [cluster for cluster in ray_clusters(manifests) if cluster.owner is job]
    return own[0] if own else service_cluster(manifests)


def pods_leave_one_at_a_time(manifests: list[Manifest]) -> list[str]:
    """Ray's pods have no owner with a scale: Kubernetes counts them only with a whole number of minAvailable."""
    wrong = []
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        spec = budget["spec"]
        count = sum(pods.count for pods in all_pods(manifests) if selects(spec["selector"], pods.labels))
        if spec.get("minAvailable") != count - 1:
            wrong.append(f"{budget['metadata']['name']}: minAvailable is not one less than its {count} pods")
    covered = [budget["spec"]["selector"] for budget in of_kind(manifests, "PodDisruptionBudget")]
    wrong += [
        f"{pods.name}: not in exactly one budget"
        for pods in all_pods(manifests)
        if pods.spec.get("restartPolicy") != "Never" and sum(selects(each, pods.labels) for each in covered) != 1
    ]
    return wrong


def _holds(expression: Manifest, labels: dict[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case operator:
            raise ValueError(f"operator {operator} is not understood here")


def _selectors(manifest: Manifest) -> list[Manifest]:
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "Service":
            return [{"matchLabels": spec["selector"]}]
        case "PodDisruptionBudget":
            return [spec["selector"]]
        case "NetworkPolicy":
            return [spec["podSelector"]]
        case _:
            return []


def _named_ports(manifests: list[Manifest]) -> list[tuple[Manifest, str, str]]:
    found: list[tuple[Manifest, str, str]] = []
    for manifest in manifests:
        spec, name = manifest.get("spec", {}), manifest["metadata"]["name"]
        if manifest["kind"] == "Service":
            found += [({"matchLabels": spec["selector"]}, port["targetPort"], name) for port in spec["ports"]]
        if manifest["kind"] == "NetworkPolicy":
            own = [port for rule in spec.get("ingress", []) for port in rule.get("ports", [])]
            found += [(spec["podSelector"], port["port"], name) for port in own]
            found += [
                (peer["podSelector"], port["port"], name)
                for rule in spec.get("egress", [])
                for peer in rule.get("to", [])
                if "podSelector" in peer
                for port in rule.get("ports", [])
            ]
    return found


def _rules(manifests: list[Manifest], pods: Pods, direction: str) -> list[Manifest]:
    return [
        rule
        for policy in of_kind(manifests, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"], pods.labels)
        for rule in policy["spec"].get(direction, [])
    ]


def _doors(manifests: list[Manifest], cluster: RayCluster, pods: Pods) -> list[Manifest]:
    """Returns what is admitted to a pod of a Ray cluster beside the pods of the same cluster."""
    others = [each.labels for each in all_pods(manifests) if each.ray_group is None or each.owner != cluster.name]
    return [rule for rule in _rules(manifests, pods, "ingress") if not _is_within(rule, others)]


def _is_within(rule: Manifest, others: list[dict[str, str]]) -> bool:
    peers = rule.get("from", [])
    return bool(peers) and all(
        _is_ours(peer) and not any(selects(peer["podSelector"], labels) for labels in others) for peer in peers
    )


def _is_ours(peer: Manifest) -> bool:
    """Says whether a peer is pods of ours: a selector in this namespace that demands our label."""
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    return set(peer) == {"podSelector"} and labels.get("app.kubernetes.io/part-of") == "live-avatar"


def _opens(rule: Manifest, direction: str, other: Pods, port: str) -> bool:
    peers, ports = rule.get(direction, []), rule.get("ports", [])
    is_meant = any(_is_ours(peer) and selects(peer["podSelector"], other.labels) for peer in peers)
    return is_meant and (not ports or {"port": port} in ports)


def _is_optional(variable: Manifest) -> bool:
    return bool(variable["valueFrom"]["secretKeyRef"].get("optional"))


def _leads_outside(rule: Manifest) -> bool:
    peers = rule.get("to", [])
    return not peers or any("ipBlock" in peer for peer in peers)


def _is_dns(rule: Manifest) -> bool:
    ports = [(port["port"], port["protocol"]) for port in rule.get("ports", [])]
    return ports == [(53, "UDP"), (53, "TCP")]


def _is_guarded(rule: Manifest) -> bool:
    """Says whether a rule admits encrypted connections alone, and none to the addresses of a node's own services."""
    excepted = {address for peer in rule.get("to", []) for address in peer.get("ipBlock", {}).get("except", [])}
    return rule.get("ports") == [{"port": 443, "protocol": "TCP"}] and excepted == _LINK_LOCAL
