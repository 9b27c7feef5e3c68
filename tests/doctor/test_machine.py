"""Shared memory, disks, open files, processors and memory, with the limits of containers."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_cluster.inventory import Gpu
from ray_cluster.nvml import NoGpus
from serve_app.doctor import machine
from serve_app.doctor.cgroup import Limits, read_limits
from serve_app.doctor.finding import Status

GIB = 2**30
UNLIMITED = Limits(cpus=None, memory_bytes=None)
ReadGpus = Callable[[], tuple[Gpu, ...] | NoGpus]


def gpus(count: int) -> ReadGpus:
    found = tuple(Gpu(index=index, kind="L4", total_bytes=GIB, free_bytes=GIB) for index in range(count))
    return lambda: found or NoGpus("none", is_fault=False)


def disk(monkeypatch: pytest.MonkeyPatch, *, free_gib: float) -> None:
    usage = SimpleNamespace(total=int(64 * GIB), free=int(free_gib * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


@pytest.mark.parametrize(
    ("free_gib", "num_gpus", "status"),
    [(8, 4, Status.OK), (0.0625, 4, Status.PROBLEM), (0.0625, 1, Status.WARNING), (0.0625, 0, Status.WARNING)],
)
def test_shared_memory_as_docker_gives_it_is_too_little_for_several_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gib: float, num_gpus: int, status: Status
) -> None:
    disk(monkeypatch, free_gib=free_gib)
    assert machine.check_shared_memory(tmp_path, gpus(num_gpus)).status is status


def test_a_system_without_shared_memory_is_not_judged(tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path / "shm", gpus(0)).status is Status.SKIPPED


@pytest.mark.parametrize(("free_gib", "status"), [(10, Status.OK), (9.9, Status.WARNING), (0.9, Status.PROBLEM)])
def test_a_disk_has_room_for_videos(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gib: float, status: Status
) -> None:
    disk(monkeypatch, free_gib=free_gib)
    found = machine.check_disk("results", tmp_path / "not" / "yet")
    assert found.status is status
    assert found.message == f"{free_gib:.1f} GiB free in {tmp_path}"


def test_a_folder_that_may_not_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert machine.check_disk("results", tmp_path).message == f"{tmp_path} cannot be written"


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        ((1024, 1_048_576), Status.OK),
        ((1024, 4096), Status.WARNING),
        ((1024, resource.RLIM_INFINITY), Status.OK),
    ],
)
def test_files_are_limited_by_what_the_limit_can_be_raised_to(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], status: Status
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    assert machine.check_open_files().status is status


@pytest.mark.parametrize(
    ("cpus", "num_gpus", "status", "told"),
    [
        (None, 0, Status.OK, "8 processors"),
        (2.5, 1, Status.OK, "2.5 of 8 processors (limit of the container)"),
        (4.0, 4, Status.WARNING, "4 of 8 processors (limit of the container)"),
    ],
)
def test_every_gpu_wants_a_processor_and_the_leader_one(
    monkeypatch: pytest.MonkeyPatch, cpus: float | None, num_gpus: int, status: Status, told: str
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = machine.check_cpus(Limits(cpus=cpus, memory_bytes=None), gpus(num_gpus))
    assert (found.status, found.message) == (status, told)


@pytest.mark.parametrize(
    ("limit_bytes", "status", "told"),
    [
        (None, Status.OK, "20.0 of 24.0 GiB free"),
        (GIB, Status.WARNING, "20.0 of 24.0 GiB free, 1.0 GiB allowed to the container"),
        (64 * GIB, Status.OK, "20.0 of 24.0 GiB free"),
    ],
)
def test_memory_counts_up_to_the_limit_of_the_container(
    tmp_path: Path, limit_bytes: int | None, status: Status, told: str
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal:       {24 * 2**20} kB\nMemFree: 1 kB\nMemAvailable:   {20 * 2**20} kB\n")
    found = machine.check_memory(meminfo, Limits(cpus=None, memory_bytes=limit_bytes))
    assert (found.status, found.message) == (status, told)


def test_a_system_that_does_not_tell_its_memory_is_not_judged(tmp_path: Path) -> None:
    assert machine.check_memory(tmp_path / "meminfo", UNLIMITED).status is Status.SKIPPED


def tree(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Writes files below `root`; returns its folders proc and mount."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root / "proc", root / "mount"


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, UNLIMITED),
        ({"proc/self/cgroup": "0::/", "mount/cpu.max": "150000 100000", "mount/memory.max": "8"}, Limits(1.5, 8)),
        (
            {"proc/self/cgroup": "0::/a/b", "mount/a/b/cpu.max": "max 100000", "mount/a/memory.max": "9"},
            Limits(None, 9),
        ),
        ({"proc/self/cgroup": "0::/a", "mount/memory.max": "7", "mount/a/memory.max": "9"}, Limits(None, 7)),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/y",
                "mount/memory/x/memory.limit_in_bytes": "5",
                "mount/cpu/y/cpu.cfs_quota_us": "50000",
                "mount/cpu/y/cpu.cfs_period_us": "100000",
            },
            Limits(0.5, 5),
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/seen/outside/only",
                "mount/memory/memory.limit_in_bytes": "6",
                "mount/cpu/cpu.cfs_quota_us": "-1",
                "mount/cpu/cpu.cfs_period_us": "100000",
            },
            Limits(None, 6),
        ),
        ({"proc/self/cgroup": "4:memory:/", "mount/memory/memory.limit_in_bytes": "9223372036854771712"}, UNLIMITED),
    ],
    ids=["none", "2, container", "2, group", "2, narrower above", "1, group", "1, container", "1, no limit"],
)
def test_limits_are_read_from_both_versions_of_cgroups(tmp_path: Path, files: dict[str, str], limits: Limits) -> None:
    proc, mount = tree(tmp_path, files)
    assert read_limits(proc=proc, mount=mount) == limits
