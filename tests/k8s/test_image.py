"""The image: what it copies exists, it runs without root, and it installs what the lock pins."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.k8s.manifests import K8S, ROOT, manifests_of, ray_pods

DOCKERFILE = (K8S / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()


def instructions(name: str) -> list[str]:
    return [line.removeprefix(f"{name} ") for line in INSTRUCTIONS if line.startswith(f"{name} ")]


def copied_from_the_repository() -> set[str]:
    lines = [line.split() for line in instructions("COPY") if not line.startswith("--from=")]
    return {word for words in lines for word in words[:-1] if not word.startswith("--")}


@pytest.mark.parametrize("path", sorted(copied_from_the_repository()))
def test_every_path_that_is_copied_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_all_that_the_package_is_built_from_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    assert copied_from_the_repository() == packages | files | {"pyproject.toml", "constraints.txt"}


def test_every_package_is_installed_as_the_lock_pins_it() -> None:
    installs = re.findall(r"pip install [^&\n]*", "\n".join(instructions("RUN")))
    assert installs != []
    assert [line for line in installs if "--constraint constraints.txt" not in line] == []


def test_it_runs_as_the_user_that_the_pods_run_as() -> None:
    security = ray_pods(manifests_of(K8S / "base"))[0].spec["securityContext"]
    assert instructions("USER")[-1] == f"{security['runAsUser']}:{security['runAsGroup']}"


def test_its_python_is_one_that_the_project_runs_on() -> None:
    (python,) = [line.removeprefix("PYTHON=") for line in instructions("ARG") if line.startswith("PYTHON=")]
    assert tuple(int(part) for part in python.split(".")) >= (3, 11)


def test_it_asks_for_no_gpu_by_itself() -> None:
    """Only Kubernetes says which pod sees which GPUs."""
    assert "NVIDIA_VISIBLE_DEVICES" not in DOCKERFILE


def test_it_has_what_the_operators_probes_call() -> None:
    assert any("apt-get install" in line and " wget " in line for line in instructions("RUN"))


def test_it_installs_every_part_of_the_product() -> None:
    """Serving and bulk runs, object storage included: all extras but that of the tests."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    found, seen = {"all"}, set[str]()
    while found - seen:
        name = (found - seen).pop()
        seen.add(name)
        inner = re.findall(r"live-avatar-serve\[(.+?)\]", " ".join(extras[name]))
        found |= {part.strip() for parts in inner for part in parts.split(",")}
    assert "'.[all]'" in DOCKERFILE
    assert seen == set(extras) - {"dev"}
