"""The kustomizations of k8s/ keep every rule; and every rule refuses what it is there to refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.cli import build_parser
from serve_app.errors import InvalidRequestError
from tests.k8s import serve_rules
from tests.k8s.faults import FAULTS, Fault, reword
from tests.k8s.manifests import K8S, manifests_of, of_kind, ray_cluster
from tests.k8s.rules import RULES, Rule
from tests.k8s.serve_rules import service_config

BASE = K8S / "base"
SERVICES = [BASE, *sorted((K8S / "overlays").iterdir())]
WEIGHTS = K8S / "weights"

REFUSED_BY_THE_APPLICATION = ("the_application_deploys_its_parts",)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("folder", SERVICES, ids=lambda folder: folder.name)
def test_every_kustomization_keeps_every_rule(folder: Path, rule: Rule) -> None:
    assert rule(manifests_of(folder)) == []


@pytest.mark.parametrize(
    "rule",
    [rule for rule in RULES if rule.__module__.endswith(("schema_rules", "pod_rules", "network_rules"))],
    ids=lambda rule: rule.__name__,
)
def test_the_weights_job_beside_the_base_keeps_the_rules_of_pods(rule: Rule) -> None:
    assert rule(manifests_of(BASE) + manifests_of(WEIGHTS)) == []


def test_the_weights_job_writes_the_checkpoint_that_the_pools_read() -> None:
    (job,) = of_kind(manifests_of(WEIGHTS), "Job")
    program, *arguments = job["spec"]["template"]["spec"]["containers"][0]["command"]
    options = build_parser().parse_args(arguments)
    checkpoints = {pool.checkpoint for pool in service_config(manifests_of(BASE)).pools}
    assert (program, {str(options.out)}) == ("live-avatar", checkpoints)


@pytest.mark.parametrize(
    ("rule", "fault"), FAULTS, ids=[f"{rule.__name__}-{number}" for number, (rule, _) in enumerate(FAULTS)]
)
def test_every_rule_refuses_its_faults(rule: Rule, fault: Fault) -> None:
    manifests = manifests_of(BASE)
    fault(manifests)
    assert rule(manifests) != []


@pytest.mark.parametrize(
    "fault",
    [
        reword("data_dir: /data", "data_folder: /data"),
        reword("layout: single", "layout: singles"),
        reword("allow_anonymous: true", ""),
        reword("min_groups: 2", "min_groups: 3"),
    ],
)
def test_the_application_refuses_wrong_settings(fault: Fault) -> None:
    manifests = manifests_of(BASE)
    fault(manifests)
    with pytest.raises(InvalidRequestError):
        serve_rules.the_application_deploys_its_parts(manifests)


def test_every_rule_has_a_fault_that_it_refuses() -> None:
    tried = {rule.__name__ for rule, _ in FAULTS} | set(REFUSED_BY_THE_APPLICATION)
    assert tried == {rule.__name__ for rule in RULES}


def test_the_base_serves_one_model_on_two_kinds_of_cards() -> None:
    pools = {pool.name: (pool.model, pool.gpu, pool.num_ranks) for pool in service_config(manifests_of(BASE)).pools}
    assert pools == {"single-80": ("live-avatar", "80", 1), "quad-24": ("live-avatar", "24", 4)}


def test_the_tiny_overlay_needs_no_gpu_no_weights_and_no_shared_storage() -> None:
    manifests = manifests_of(K8S / "overlays" / "cpu-tiny")
    claims = of_kind(manifests, "PersistentVolumeClaim")
    assert "nvidia" not in str(ray_cluster(manifests))
    assert [claim["spec"]["accessModes"] for claim in claims] == [["ReadWriteOnce"]]
    assert service_config(manifests).models == ("live-avatar-tiny",)


def test_the_tiny_overlay_says_that_it_must_not_be_exposed() -> None:
    assert "never give this service an Ingress, a NodePort or a LoadBalancer" in (
        K8S / "overlays" / "cpu-tiny" / "application.yaml"
    ).read_text(encoding="utf-8")
