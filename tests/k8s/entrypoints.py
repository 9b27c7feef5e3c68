"""What a RayJob runs: the command line of a bulk run, and what its processes get."""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import Any

import yaml

from serve_app.schemas.service import PoolConfig
from tests.k8s.manifests import Manifest


def command_line(job: Manifest) -> list[str]:
    return shlex.split(job["spec"]["entrypoint"])


def flags(job: Manifest) -> dict[str, str]:
    """Returns the value of every flag that has one."""
    words = command_line(job)
    return {flag: value for flag, value in pairwise(words) if flag.startswith("--") and not value.startswith("--")}


def runtime_environment(job: Manifest) -> dict[str, Any]:
    return yaml.safe_load(job["spec"].get("runtimeEnvYAML", "")) or {}


def pool(job: Manifest) -> PoolConfig:
    """Returns the groups that a run makes for itself."""
    said = flags(job)
    num_groups = int(said.get("--groups", "1"))
    return PoolConfig(
        name="own",
        checkpoint=said.get("--checkpoint", "tiny"),
        layout=said.get("--layout", "single"),
        gpu=said.get("--gpus"),
        leader_cpus=float(said.get("--leader-cpus", "1")),
        cpus_per_rank=float(said.get("--cpus-per-rank", "1")),
        min_groups=num_groups,
        max_groups=num_groups,
    )
