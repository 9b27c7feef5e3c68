"""Checks of Python packages, by their metadata: nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from serve_app.doctor.finding import Finding, Status

DISTRIBUTION = "live-avatar-serve"
VersionOf = Callable[[str], str | None]


@dataclass(frozen=True)
class TorchBuild:
    """The installed torch; `cuda` is None for a build without CUDA."""

    version: str
    cuda: tuple[int, int] | None

    def __str__(self) -> str:
        made_for = "without CUDA" if self.cuda is None else f"for CUDA {self.cuda[0]}.{self.cuda[1]}"
        return f"torch {self.version} is built {made_for}"


def installed_torch() -> TorchBuild | None:
    """Returns what the installed torch says of itself in its version.py, or None without torch."""
    spec = find_spec("torch")
    if spec is None or not spec.origin:
        return None
    return read_torch_build(Path(spec.origin).with_name("version.py").read_text())


def read_torch_build(version_py: str) -> TorchBuild:
    """Reads torch/version.py as text: importing torch takes seconds."""
    facts = {}
    for line in ast.parse(version_py).body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                facts[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value)):
                facts[name] = value
    cuda = facts.get("cuda")
    return TorchBuild(str(facts["__version__"]), _pair(str(cuda)) if cuda else None)


def _pair(version: str) -> tuple[int, int]:
    major, minor, *_ = *_numbers(version), 0
    return major, minor


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def own_requirements() -> Sequence[str] | None:
    """Returns what this distribution requires, or None when it runs from its source without being installed."""
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None


def check_packages(extra: str, requirements: Sequence[str] | None, version_of: VersionOf) -> Finding:
    """Holds the packages of one extra against what is installed; an extra that is absent altogether is a choice."""
    check = f"packages [{extra}]"
    if requirements is None:
        return Finding(check, Status.SKIPPED, f"{DISTRIBUTION} is not installed, it runs from its source")
    wanted = [match for line in requirements if (match := _OF_EXTRA.match(line)) and match["extra"] == extra]
    found = {match["name"]: version_of(match["name"]) for match in wanted}
    remedy = f'pip install "{DISTRIBUTION}[{extra}]"'
    if not any(found.values()):
        return Finding(check, Status.SKIPPED, f"not installed: {', '.join(found)}", remedy)
    faults = [_fault(match["name"], found[match["name"]], match["least"]) for match in wanted]
    if any(faults):
        return Finding(check, Status.PROBLEM, "; ".join(filter(None, faults)), remedy)
    return Finding(check, Status.OK, ", ".join(f"{name} {version}" for name, version in found.items()))


_OF_EXTRA = re.compile(r"(?P<name>[\w.-]+)(>=(?P<least>[\d.]+))?\s*;\s*extra\s*==\s*[\"'](?P<extra>[\w-]+)[\"']")


def _fault(name: str, version: str | None, least: str | None) -> str:
    if version is None:
        return f"{name} is missing"
    if least and _numbers(version) < _numbers(least):
        return f"{name} {version} is older than {least}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"[\d.]*\d", version)
    return tuple(map(int, release[0].split("."))) if release else ()
