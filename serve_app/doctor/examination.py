"""`live-avatar doctor`: all checks of this machine, and how their findings are shown."""

from __future__ import annotations

import os
import socket
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ray_cluster.nvml import open_gpus
from serve_app.doctor import checkpoint, environment, gpu, machine, network, packages
from serve_app.doctor.cgroup import read_limits
from serve_app.doctor.finding import Check, Finding, Status, run_checks
from serve_app.errors import InvalidRequestError

TIMEOUT_S = 30.0
CHECKPOINT_TIMEOUT_S = 20.0
_NEED_ATTENTION = (Status.WARNING, Status.PROBLEM)


@dataclass(frozen=True)
class Question:
    """What the user wants to know beyond the usual; `output_dir` and `cache_dir` are where renders write."""

    output_dir: Path
    cache_dir: Path
    ports: Sequence[int] = ()
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        for port in self.ports:
            if not 0 < port < 65536:
                raise InvalidRequestError(f"port {port} is not in 1..65535", remedy="name another port", param="port")


def examine(question: Question) -> list[Finding]:
    """Runs all checks; takes a second or so, and TIMEOUT_S at most."""
    # The one place beside schemas/config.py that reads the environment: it is what is examined.
    return run_checks(_checks(question, os.environ), timeout_s=TIMEOUT_S)


def is_healthy(findings: Sequence[Finding]) -> bool:
    return all(finding.status is not Status.PROBLEM for finding in findings)


def _checks(question: Question, environ: Mapping[str, str]) -> dict[str, Check]:
    """Returns the checks by the names that their findings bear."""
    return {
        **_gpu_checks(),
        **_machine_checks(question),
        "loopback": network.check_loopback,
        "host name": lambda: network.check_host_name(socket.gethostname()),
        **_port_checks(question.ports),
        "environment of Ray": partial(
            environment.check_ray_environment, environ, Path.home(), Path(tempfile.gettempdir())
        ),
        "environment of CUDA": partial(environment.check_cuda_environment, environ),
        "environment of NCCL": lambda: environment.check_communication(
            environ, [name for _, name in socket.if_nameindex()]
        ),
        **({} if question.checkpoint is None else _checkpoint_checks(question.checkpoint)),
    }


def _gpu_checks() -> dict[str, Check]:
    build, version_of = packages.installed_torch, packages.installed_version
    return {
        "gpus": lambda: gpu.check_gpus(gpu.read_gpus),
        "gpu memory": lambda: gpu.check_gpu_memory(open_gpus),
        "driver and torch": lambda: gpu.check_driver(open_gpus, build()),
        "nccl": lambda: gpu.check_nccl(gpu.read_gpus, build(), version_of),
        "packages [model]": lambda: packages.check_packages("model", packages.own_requirements(), version_of),
        "packages [cluster]": lambda: packages.check_packages("cluster", packages.own_requirements(), version_of),
    }


def _machine_checks(question: Question) -> dict[str, Check]:
    return {
        "processors": lambda: machine.check_cpus(read_limits(), gpu.read_gpus),
        "memory": lambda: machine.check_memory(Path("/proc/meminfo"), read_limits()),
        "shared memory": lambda: machine.check_shared_memory(Path("/dev/shm"), gpu.read_gpus),  # noqa: S108
        "open files": machine.check_open_files,
        "disk for results": partial(machine.check_disk, "results", question.output_dir),
        "disk for the cache": partial(machine.check_disk, "the cache", question.cache_dir),
        "disk for temporary files": lambda: machine.check_disk("temporary files", Path(tempfile.gettempdir())),
    }


def _port_checks(asked_for: Sequence[int]) -> dict[str, Check]:
    ports = {**dict.fromkeys(network.USUAL_PORTS, False), **dict.fromkeys(asked_for, True)}
    return {
        f"port {port}": partial(network.check_port, port, is_asked_for=is_asked_for)
        for port, is_asked_for in ports.items()
    }


def _checkpoint_checks(folder: Path) -> dict[str, Check]:
    return {
        "checkpoint files": partial(checkpoint.check_files, folder),
        "checkpoint tensors": lambda: checkpoint.check_tensors(
            folder, packages.installed_torch(), timeout_s=CHECKPOINT_TIMEOUT_S
        ),
    }


def as_table(findings: Sequence[Finding]) -> str:
    """Returns a line per finding, the remedy of what needs attention below it, and a last line that sums up."""
    width = max(len(finding.check) for finding in findings) + 2
    lines = []
    for finding in findings:
        lines.append(f"{finding.check:<{width}}{finding.status:<9}{finding.message}")
        if finding.status in _NEED_ATTENTION:
            lines.append(f"{'':<{width + 9}}-> {finding.remedy}")
    return "\n".join([*lines, _summary(findings)])


def _summary(findings: Sequence[Finding]) -> str:
    counts = Counter(finding.status for finding in findings)
    return ", ".join(f"{counts[status]} {status}" for status in Status)


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """Returns the object that `--json` prints."""
    return {"healthy": is_healthy(findings), "findings": [asdict(finding) for finding in findings]}
