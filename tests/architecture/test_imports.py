"""What each part may import, held by contracts and by importing it where the rest does not exist."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = ROOT / "serve_app"
TIMEOUT_S = 120

OUTSIDE_THE_MODEL_PLANE = ["ray", "pydantic", "av", "starlette", "fastapi", "boto3", "diffusers", "PIL", "soxr"]
MODEL_PLANE = ["model", "distributed", "engine"]
TORCH_FAMILY = ["torch", "transformers", "safetensors"]
CONTROL_PLANE = [
    "cli",
    "commands",
    "demo",
    "local_service",
    "app",
    "bulk",
    "deployments",
    "doctor",
    "plan_report",
    "api",
    "rendering",
    "jobs",
    "media",
    "storage",
    "schemas",
    "planning",
    "task",
    "troubleshooting",
    "errors",
    "metrics",
]
LIBRARY_ONLY = ["planning", "troubleshooting", "errors", "metrics"]
OF_NO_PLANE = ["samples"]

IMPORT_ALL = """
import importlib, json, sys

modules, absent, library_only = json.loads(sys.argv[1])


class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        foreign = top != "serve_app" and top not in sys.stdlib_module_names
        hidden = top in absent or (library_only and foreign)
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for module in modules:
    importlib.import_module(module)
"""


def modules_of(part: str) -> list[str]:
    """Returns the module names of a part (a module or a folder of serve_app) without importing anything."""
    files = [PRODUCT / f"{part}.py", *sorted((PRODUCT / part).rglob("*.py"))]
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if file.is_file() and file.name != "__init__.py"
    ]
    assert modules, f"serve_app.{part} has no modules"
    return modules


def import_apart(modules: list[str], *, absent: list[str], library_only: bool = False) -> None:
    """Imports `modules` in a clean process that sees none of `absent`, as if not installed; asserts that it works."""
    arguments = json.dumps([modules, absent, library_only])
    process = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, arguments], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert process.returncode == 0, process.stderr


def test_every_part_belongs_to_a_plane() -> None:
    parts = {path.stem for path in PRODUCT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert parts - {"__init__"} == {*MODEL_PLANE, *CONTROL_PLANE, *OF_NO_PLANE}


def test_the_import_contracts_are_kept() -> None:
    process = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.parametrize("part", MODEL_PLANE)
def test_the_model_plane_imports_on_a_gpu_box_that_has_torch_alone(part: str) -> None:
    import_apart(modules_of(part), absent=OUTSIDE_THE_MODEL_PLANE)


@pytest.mark.parametrize("part", CONTROL_PLANE)
def test_the_control_plane_imports_without_torch(part: str) -> None:
    import_apart(modules_of(part), absent=TORCH_FAMILY)


@pytest.mark.parametrize("part", LIBRARY_ONLY)
def test_what_others_trust_imports_with_the_standard_library_alone(part: str) -> None:
    import_apart(modules_of(part), absent=[], library_only=True)


@pytest.mark.parametrize(("module", "library_only"), [("torch", False), ("numpy", True)])
def test_an_absent_package_cannot_be_imported(module: str, library_only: bool) -> None:
    with pytest.raises(AssertionError, match=f"No module named '{module}'"):
        import_apart([module], absent=["torch"], library_only=library_only)
