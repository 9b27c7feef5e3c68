"""Every command of k8s/README.md that needs no cluster is run; the others name what exists."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
import yaml

from tests.architecture.test_readme import shell_commands
from tests.k8s.manifests import K8S, ROOT, manifests_of, of_kind, ray_service
from tests.k8s.network_rules import CLIENT

README = (K8S / "README.md").read_text(encoding="utf-8")
COMMANDS = shell_commands(README)
BASE = manifests_of(K8S / "base")


def run_offline(words: list[str]) -> str:
    """Runs a command of kubectl that reaches for no cluster."""
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    return made.stdout


@pytest.mark.parametrize("words", COMMANDS, ids=shlex.join)
def test_every_command_works_or_names_what_exists(words: list[str]) -> None:
    match words:
        case ["kubectl", "kustomize", _]:
            assert run_offline(words)
        case ["kubectl", "apply" | "delete", "-k", folder]:
            assert run_offline(["kubectl", "kustomize", folder])
        case ["kubectl", "-n", "live-avatar", "create", *_] | ["kubectl", "create", *_]:
            offline = [re.sub(r"\$\(.*\)", "generated", word) for word in words]
            assert yaml.safe_load(run_offline([*offline, "--dry-run=client", "-o", "yaml"]))["metadata"]["name"]
        case ["kubectl", "-n", "live-avatar", "get" | "wait" | "port-forward", *rest]:
            assert rest
        case ["docker", "build", "--file", file, *_, "."]:
            assert (ROOT / file).is_file()
        case ["helm", *_] | ["kind", *_] | ["curl", *_]:
            pass
        case _:
            pytest.fail(f"no test knows how to check: {shlex.join(words)}")


def test_every_name_that_it_uses_is_that_of_an_object() -> None:
    namespace = of_kind(BASE, "Namespace")[0]["metadata"]["name"]
    assert {words[words.index("-n") + 1] for words in COMMANDS if "-n" in words} == {namespace}
    service = ray_service(BASE)["metadata"]["name"]
    named = re.findall(r"\b(?:rayservice|svc)/(\S+)", README)
    assert set(named) == {service, f"{service}-serve-svc"}


def test_it_tells_the_label_that_lets_clients_in() -> None:
    assert all(f"{name}={value}" in README for name, value in CLIENT.items())


def test_every_build_argument_that_it_names_is_one_of_the_image() -> None:
    known = set(re.findall(r"^ARG (\w+)", (K8S / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"--build-arg (\w+)", README)) <= known


def test_every_relative_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert [link for link in links if not (K8S / link).exists()] == []


def test_every_overlay_is_told() -> None:
    overlays = [f"k8s/overlays/{folder.name}" for folder in sorted((K8S / "overlays").iterdir())]
    assert [overlay for overlay in overlays if overlay not in README] == []
