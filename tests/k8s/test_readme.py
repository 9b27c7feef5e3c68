"""Every command of k8s/README.md that needs no cluster is run; the others name what exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.architecture.test_readme import shell_commands
from tests.k8s.manifests import K8S, ROOT, Manifest, manifests_of, of_kind
from tests.k8s.network_rules import CLIENT

README = (K8S / "README.md").read_text(encoding="utf-8")
COMMANDS = shell_commands(README)
FOLDERS = sorted(file.parent for file in K8S.rglob("kustomization.yaml"))
WRITTEN = [manifest for folder in FOLDERS for manifest in manifests_of(folder)]
MADE_BY_THE_OPERATOR = {
    ("job", "live-avatar-bulk"),
    ("job", "live-avatar-bulk-shared"),
    ("svc", "live-avatar-serve-svc"),
}
PLACEHOLDERS = r"\b[A-Z]{6,}\b"


def run_offline(words: list[str], text: str = "") -> str:
    """Runs a command that reaches for no cluster."""
    made = subprocess.run(words, cwd=ROOT, input=text, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    return made.stdout


def without_cluster(word: str) -> str:
    """Replaces what another command would print."""
    return re.sub(r"\$\(.*\)", "generated", word)


@pytest.mark.parametrize("words", COMMANDS, ids=shlex.join)
def test_every_command_works_or_names_what_exists(words: list[str]) -> None:
    match words:
        case ["kubectl", "kustomize", _]:
            assert run_offline(words)
        case ["kubectl", "kustomize", folder, "|", "sed", script, "|", "kubectl", "apply", "-f", "-"]:
            made = run_offline(["sed", without_cluster(script)], run_offline(["kubectl", "kustomize", folder]))
            check_completed(list(yaml.safe_load_all(made)))
        case ["kubectl", "apply" | "delete", "-k", folder]:
            assert run_offline(["kubectl", "kustomize", folder])
        case ["kubectl", "-n", "live-avatar", "create", *_] | ["kubectl", "create", *_]:
            offline = [without_cluster(word) for word in words]
            assert yaml.safe_load(run_offline([*offline, "--dry-run=client", "-o", "yaml"]))["metadata"]["name"]
        case ["kubectl", "-n", "live-avatar", "get" | "wait" | "port-forward" | "logs" | "delete", *rest]:
            assert rest
        case ["docker", "build", "--file", file, *_, "."]:
            assert (ROOT / file).is_file()
        case ["helm", *_] | ["kind", *_] | ["curl", *_]:
            pass
        case _:
            pytest.fail(f"no test knows how to check: {shlex.join(words)}")


def check_completed(manifests: list[Manifest]) -> None:
    """Whatever a user must tell is told: the job says nothing in capitals any more, where it did before."""
    (job,) = of_kind(manifests, "RayJob")
    (written,) = [each for each in of_kind(WRITTEN, "RayJob") if name_of(each) == name_of(job)][:1]
    told = [job["spec"]["entrypoint"], str(job["spec"].get("clusterSelector"))]
    assert re.findall(PLACEHOLDERS, str(told)) == []
    assert re.findall(PLACEHOLDERS, written["spec"]["entrypoint"]) != []


def name_of(manifest: Manifest) -> str:
    name: str = manifest["metadata"]["name"]
    return name


def test_every_name_that_it_uses_is_that_of_an_object() -> None:
    (namespace,) = {name_of(each) for each in of_kind(WRITTEN, "Namespace")}
    assert {words[words.index("-n") + 1] for words in COMMANDS if "-n" in words} == {namespace}
    known = {(each["kind"].lower(), name_of(each)) for each in WRITTEN} | MADE_BY_THE_OPERATOR
    assert named() - known == set()
    assert {kind for kind, _ in named()} == {"namespace", "rayservice", "rayjob", "job", "svc"}


def named() -> set[tuple[str, str]]:
    """Returns every kind with a name after it, as in `rayjob/live-avatar-bulk` or `get rayjob live-avatar-bulk`."""
    kinds = "|".join({each["kind"].lower() for each in WRITTEN} | {"svc"})
    text = "\n".join(shlex.join(words) for words in COMMANDS)
    return set(re.findall(rf"\b({kinds})[/ ](live-[a-z-]+|convert-[a-z-]+)", text))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\{\.(status\.[A-Za-z.]+)\}", README))))
def test_every_status_that_it_asks_for_is_one_of_the_schema(path: str) -> None:
    schemas = [
        json.loads((Path(__file__).parent / "schemas" / f"{kind}.json").read_text())
        for kind in ("rayjob", "rayservice")
    ]
    assert any(has_field(schema, path.split("."), schema) for schema in schemas)


def has_field(schema: dict[str, Any], path: list[str], root: dict[str, Any]) -> bool:
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    field = schema.get("properties", {}).get(path[0])
    return field is not None and (len(path) == 1 or has_field(field, path[1:], root))


def test_it_tells_the_command_that_makes_every_job_run() -> None:
    completed = {words[2] for words in COMMANDS if "sed" in words}
    assert completed == {f"k8s/bulk/{folder.name}" for folder in FOLDERS if of_kind(manifests_of(folder), "RayJob")}


def test_it_tells_the_label_that_lets_clients_in() -> None:
    assert all(f"{name}={value}" in README for name, value in CLIENT.items())


def test_every_build_argument_that_it_names_is_one_of_the_image() -> None:
    known = set(re.findall(r"^ARG (\w+)", (K8S / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"--build-arg (\w+)", README)) <= known


def test_every_relative_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert [link for link in links if not (K8S / link).exists()] == []


def test_every_kustomization_is_told() -> None:
    folders = [str(folder.relative_to(ROOT)) for folder in FOLDERS]
    assert [folder for folder in folders if f"`{folder}`" not in README] == []
