"""Rules of who reaches whom, and of how many may leave at once."""

from __future__ import annotations

from tests.k8s.manifests import Manifest, Pods, all_pods, of_kind, ray_pods

CLIENT = {"live-avatar-client": "true"}
_API_PORT = "serve"


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
    for pods in ray_pods(manifests):
        for rule in _ingress_rules(manifests, pods):
            peers = rule.get("from", [])
            inside = bool(peers) and all(_is_ours(peer) for peer in peers)
            if pods.is_head or inside:
                continue
            named = [port.get("port") for port in rule.get("ports", [])]
            if peers != [{"podSelector": {"matchLabels": CLIENT}}] or named != [_API_PORT]:
                wrong.append(f"{pods.name}: admits {peers or 'everybody'} on {named or 'every port'}")
    return wrong


def labelled_clients_do_reach_the_api(manifests: list[Manifest]) -> list[str]:
    """The service of the API stands for every worker that is ready."""
    return [
        f"{pods.name}: refuses clients"
        for pods in ray_pods(manifests)
        if not pods.is_head
        and not any(
            selects(peer.get("podSelector", {}), CLIENT)
            for rule in _ingress_rules(manifests, pods)
            for peer in rule.get("from", [])
        )
    ]


def nobody_but_the_operator_reaches_the_head(manifests: list[Manifest]) -> list[str]:
    head = ray_pods(manifests)[0]
    rules = [
        rule
        for rule in _ingress_rules(manifests, head)
        if not (rule.get("from") and all(_is_ours(peer) for peer in rule["from"]))
    ]
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
    }
    wanted = [{"from": [operator], "ports": [{"port": "dashboard"}]}]
    return [] if rules == wanted else [f"head: admits {rules}"]


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
                for port in rule.get("ports", [])
            ]
    return found


def _ingress_rules(manifests: list[Manifest], pods: Pods) -> list[Manifest]:
    return [
        rule
        for policy in of_kind(manifests, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"], pods.labels)
        for rule in policy["spec"].get("ingress", [])
    ]


def _is_ours(peer: Manifest) -> bool:
    """Says whether a peer is pods of the cluster itself: a selector in this namespace that demands our label."""
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    return set(peer) == {"podSelector"} and labels.get("app.kubernetes.io/part-of") == "live-avatar"
