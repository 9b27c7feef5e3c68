"""What a container may use: limits that the kernel sets by cgroup, version 1 or 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 2**60  # version 1 writes a number close to 2**63


@dataclass(frozen=True)
class Limits:
    """None stands for no limit."""

    cpus: float | None
    memory_bytes: int | None


def read_limits(*, proc: Path = Path("/proc"), mount: Path = Path("/sys/fs/cgroup")) -> Limits:
    """Returns the narrowest limits of this process's groups and of those around them."""
    groups = dict(_own_groups(proc / "self/cgroup"))
    cpu = [*_around(mount, groups.get("")), *_around(mount / "cpu", groups.get("cpu"))]
    memory = [*_around(mount, groups.get("")), *_around(mount / "memory", groups.get("memory"))]
    cpus = [limit for group in cpu if (limit := _cpus(group)) is not None]
    sizes = [limit for group in memory if (limit := _memory_bytes(group)) is not None]
    return Limits(cpus=min(cpus, default=None), memory_bytes=min(sizes, default=None))


def _own_groups(listing: Path) -> Iterator[tuple[str, str]]:
    """Yields controller and path; version 2 has one group with no controller's name."""
    for line in _text(listing).splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _around(mount: Path, path: str | None) -> list[Path]:
    """Returns the group's folder and all above it, up to the mount; a container sees the mount alone."""
    group = mount / (path or "/").lstrip("/")
    return [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]


def _cpus(group: Path) -> float | None:
    quota_us, period_us = (*_text(group / "cpu.max").split(), "", "")[:2]
    if not quota_us:
        quota_us, period_us = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    return int(quota_us) / int(period_us) if quota_us.isdigit() and period_us.isdigit() else None


def _memory_bytes(group: Path) -> int | None:
    limit = _text(group / "memory.max") or _text(group / "memory.limit_in_bytes")
    return int(limit) if limit.isdigit() and int(limit) < _UNLIMITED_BYTES else None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
