"""The kustomizations of k8s/ keep every rule; and every rule refuses what it is there to refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.cli import build_parser
from serve_app.errors import InvalidRequestError
from tests.k8s import entrypoints, serve_rules
from tests.k8s.bulk_faults import BULK_FAULTS
from tests.k8s.faults import FAULTS, Fault, reword
from tests.k8s.manifests import K8S, Manifest, manifests_of, of_kind, service_cluster
from tests.k8s.rules import GENERAL_RULES, RULES, SERVICE_RULES, Rule
from tests.k8s.serve_rules import service_config

BASE, WEIGHTS, FOUNDATION, BULK = K8S / "base", K8S / "weights", K8S / "foundation", K8S / "bulk"
TINY = K8S / "overlays" / "cpu-tiny"
JOBS = [BULK / "own-cluster", BULK / "own-cluster-queued", BULK / "running-cluster"]

SERVICES = {
    "base": (BASE,),
    "cpu-tiny": (TINY,),
    "running-cluster": (BASE, BULK / "running-cluster"),
    "running-cluster on cpu-tiny": (TINY, BULK / "running-cluster"),
    "everything": (BASE, WEIGHTS, BULK / "kueue", BULK / "own-cluster-queued", BULK / "running-cluster"),
}
JOBS_ALONE = {
    "own-cluster": (FOUNDATION, WEIGHTS, BULK / "own-cluster"),
    "own-cluster-queued": (FOUNDATION, BULK / "kueue", BULK / "own-cluster-queued"),
}
REFUSED_BY_THE_APPLICATION = ("the_application_deploys_its_parts",)
ALL_FAULTS = FAULTS + BULK_FAULTS


def beside_each_other(folders: tuple[Path, ...]) -> list[Manifest]:
    """Returns what stands in a cluster to which all these kustomizations were applied."""
    return [manifest for folder in folders for manifest in manifests_of(folder)]


@pytest.mark.parametrize("rule", GENERAL_RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("place", SERVICES | JOBS_ALONE)
def test_every_kustomization_keeps_every_rule(place: str, rule: Rule) -> None:
    assert rule(beside_each_other((SERVICES | JOBS_ALONE)[place])) == []


@pytest.mark.parametrize("rule", SERVICE_RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("place", SERVICES)
def test_every_service_keeps_the_rules_of_services(place: str, rule: Rule) -> None:
    assert rule(beside_each_other(SERVICES[place])) == []


def test_every_kustomization_is_tried() -> None:
    tried = {folder for folders in (SERVICES | JOBS_ALONE).values() for folder in folders}
    assert tried == {file.parent for file in K8S.rglob("kustomization.yaml")}


@pytest.mark.parametrize("folder", JOBS, ids=lambda folder: folder.name)
def test_a_job_is_deleted_without_what_others_stand_on(folder: Path) -> None:
    others = {name_of(each) for each in beside_each_other((BASE, WEIGHTS, BULK / "kueue"))}
    assert {name_of(each) for each in manifests_of(folder)} & others == set()


def test_the_two_kinds_of_jobs_do_not_overwrite_each_other() -> None:
    own, shared = ({name_of(each) for each in manifests_of(BULK / name)} for name in ("own-cluster", "running-cluster"))
    assert own & shared == set()


def name_of(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def test_the_weights_job_writes_the_checkpoint_that_all_groups_read() -> None:
    (convert,) = of_kind(manifests_of(WEIGHTS), "Job")
    (bulk,) = of_kind(manifests_of(BULK / "own-cluster"), "RayJob")
    program, *arguments = convert["spec"]["template"]["spec"]["containers"][0]["command"]
    options = build_parser().parse_args(arguments)
    pools = [*service_config(manifests_of(BASE)).pools, entrypoints.pool(bulk)]
    assert (program, {str(options.out)}) == ("live-avatar", {pool.checkpoint for pool in pools})


@pytest.mark.parametrize(
    ("rule", "fault"), ALL_FAULTS, ids=[f"{rule.__name__}-{number}" for number, (rule, _) in enumerate(ALL_FAULTS)]
)
def test_every_rule_refuses_its_faults(rule: Rule, fault: Fault) -> None:
    manifests = beside_each_other(SERVICES["everything"])
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
    tried = {rule.__name__ for rule, _ in ALL_FAULTS} | set(REFUSED_BY_THE_APPLICATION)
    assert tried == {rule.__name__ for rule in RULES}


def test_the_base_serves_one_model_on_two_kinds_of_cards() -> None:
    pools = {pool.name: (pool.model, pool.gpu, pool.num_ranks) for pool in service_config(manifests_of(BASE)).pools}
    assert pools == {"single-80": ("live-avatar", "80", 1), "quad-24": ("live-avatar", "24", 4)}


def test_the_tiny_overlay_needs_no_gpu_no_weights_and_no_shared_storage() -> None:
    manifests = manifests_of(TINY)
    claims = of_kind(manifests, "PersistentVolumeClaim")
    assert "nvidia" not in str(service_cluster(manifests).spec)
    assert [claim["spec"]["accessModes"] for claim in claims] == [["ReadWriteOnce"]]
    assert service_config(manifests).models == ("live-avatar-tiny",)


def test_the_tiny_overlay_says_that_it_must_not_be_exposed() -> None:
    assert "never give this service an Ingress, a NodePort or a LoadBalancer" in (TINY / "application.yaml").read_text(
        encoding="utf-8"
    )
