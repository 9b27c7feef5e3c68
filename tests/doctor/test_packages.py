"""Packages are judged by their metadata."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from serve_app.doctor.finding import Status
from serve_app.doctor.packages import (
    TorchBuild,
    check_packages,
    installed_torch,
    installed_version,
    read_torch_build,
)

REQUIREMENTS = [
    "numpy>=2",
    'torch>=2.11; extra == "model"',
    "safetensors>=0.7 ; extra == 'model'",
    'ray>=2.60; extra == "cluster"',
]


@pytest.mark.parametrize(
    ("installed", "status", "told"),
    [
        ({"torch": "2.11.0+cu128", "safetensors": "0.10.1"}, Status.OK, "torch 2.11.0+cu128, safetensors 0.10.1"),
        ({"torch": "2.9.1", "safetensors": "0.8"}, Status.PROBLEM, "torch 2.9.1 is older than 2.11"),
        ({"torch": "2.13.0"}, Status.PROBLEM, "safetensors is missing"),
        ({}, Status.SKIPPED, "not installed: torch, safetensors"),
    ],
)
def test_the_packages_of_an_extra_are_there_in_full_or_not_at_all(
    installed: dict[str, str], status: Status, told: str
) -> None:
    found = check_packages("model", REQUIREMENTS, installed.get)
    assert (found.status, found.message) == (status, told)
    assert status is Status.OK or found.remedy == 'pip install "live-avatar-serve[model]"'


def test_requirements_as_pyproject_writes_them_are_understood() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    for extra in ("model", "cluster"):
        listed = pyproject["project"]["optional-dependencies"][extra]
        found = check_packages(extra, [f'{line}; extra == "{extra}"' for line in listed], installed_version)
        assert (found.status, len(found.message.split(", "))) == (Status.OK, len(listed))


def test_a_program_that_runs_from_its_source_is_not_judged() -> None:
    assert check_packages("model", None, installed_version).status is Status.SKIPPED


def test_the_installed_torch_is_told_without_importing_it() -> None:
    cuda = torch.version.cuda
    numbers = None if cuda is None else (int(cuda.split(".")[0]), int(cuda.split(".")[1]))
    assert installed_torch() == TorchBuild(torch.__version__, numbers)


def test_a_build_for_cuda_is_told_apart() -> None:
    text = "from typing import Optional\n\n__version__ = '2.13.0'\ndebug = False\ncuda: Optional[str] = '12.8'\n"
    assert str(read_torch_build(text)) == "torch 2.13.0 is built for CUDA 12.8"
    assert (
        str(read_torch_build("__version__ = '2.13.0+cpu'\ncuda = None\n")) == "torch 2.13.0+cpu is built without CUDA"
    )
