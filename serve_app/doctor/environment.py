"""Checks of what the environment and earlier runs left behind: settings that change how Ray, CUDA and NCCL behave."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.doctor.finding import Finding, Status

Environment = Mapping[str, str]


@dataclass(frozen=True)
class _Trap:
    """A variable, the values that hurt, and how."""

    name: str
    values: str
    harm: str


_TRAPS = (
    _Trap("NCCL_P2P_DISABLE", "1", "slows GPUs that could talk to each other directly"),
    _Trap("NCCL_SHM_DISABLE", "1", "slows GPUs of one machine"),
    _Trap("NCCL_DEBUG", "INFO|TRACE", "writes much into the log"),
    _Trap("NCCL_BLOCKING_WAIT|TORCH_NCCL_BLOCKING_WAIT", "1", "slows every step"),
    _Trap("TORCH_NCCL_ENABLE_MONITORING", "0", "lets a hung GPU process hang for ever"),
    _Trap("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", r"\d{5,}", "lets a hung GPU process hang for hours"),
    _Trap("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", "lets the others wait for a GPU process that died"),
)
_INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
_COMMUNICATION = ("NCCL_", "TORCH_NCCL_", "GLOO_")


def check_communication(environment: Environment, interfaces: Sequence[str]) -> Finding:
    """Looks at the variables of NCCL and gloo; `interfaces` are the machine's network interfaces."""
    check = "environment of NCCL"
    given = {name: value for name, value in environment.items() if name.startswith(_COMMUNICATION)}
    for name in _INTERFACES:
        if (value := given.get(name)) and not _names_interface(value, interfaces):
            message = f"{name}={value} names no interface of this machine ({', '.join(interfaces)})"
            return Finding(check, Status.PROBLEM, message, f"unset {name}, or name one of them")
    harms = [
        f"{name}={value} {trap.harm}"
        for name, value in given.items()
        for trap in _TRAPS
        if re.fullmatch(trap.name, name) and re.fullmatch(trap.values, value.upper())
    ]
    if harms:
        return Finding(check, Status.WARNING, "; ".join(harms), "unset what is not needed any more")
    shown = ", ".join(f"{name}={value}" for name, value in given.items())
    return Finding(check, Status.OK, shown or "nothing is set")


def _names_interface(value: str, interfaces: Sequence[str]) -> bool:
    """NCCL takes beginnings of names, exact names behind "=", and names to leave out behind "^"."""
    if value.startswith("^"):
        return True
    names = value.removeprefix("=").split(",")
    return any(interface.startswith(name.partition(":")[0]) for name in names for interface in interfaces)


def check_cuda_environment(environment: Environment) -> Finding:
    check = "environment of CUDA"
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return Finding(check, Status.OK, "nothing is set")
    shown = f"CUDA_VISIBLE_DEVICES={visible}"
    if visible.strip() in ("", "-1", "none", "NoDevFiles"):
        return Finding(check, Status.WARNING, f"{shown} hides every GPU", "unset CUDA_VISIBLE_DEVICES")
    return Finding(check, Status.OK, shown)


def check_ray_environment(environment: Environment, home: Path, temp: Path) -> Finding:
    """Looks for what makes Ray join a cluster, or ask for a token, that nobody meant."""
    token = home / ".ray/auth_token"
    cluster = Path(environment.get("RAY_TMPDIR", temp)) / "ray/ray_current_cluster"
    found = {
        f"RAY_ADDRESS={environment.get('RAY_ADDRESS')}: commands join that cluster": "RAY_ADDRESS" in environment,
        f"{cluster}: programs may join the cluster that it names": cluster.is_file(),
        f"{token} without RAY_AUTH_MODE: Ray asks for this token": token.is_file()
        and "RAY_AUTH_MODE" not in environment,
    }
    traps = [trap for trap, is_set in found.items() if is_set]
    if traps:
        remedy = "all is well when you mean it; else unset the variable, or remove the file once no Ray runs here"
        return Finding("environment of Ray", Status.WARNING, "; ".join(traps), remedy)
    mode = environment.get("RAY_AUTH_MODE")
    return Finding("environment of Ray", Status.OK, f"RAY_AUTH_MODE={mode}" if mode else "nothing is set or left over")
