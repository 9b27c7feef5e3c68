"""Checks of shared memory, disks, open files, processors and memory."""

from __future__ import annotations

import os
import re
import resource
import shutil
from pathlib import Path

from ray_cluster.nvml import NoGpus
from serve_app.doctor.cgroup import Limits
from serve_app.doctor.finding import Finding, Status
from serve_app.doctor.gpu import GIB, ReadGpus

_SHM_REMEDY = "docker run --shm-size=8g, on Kubernetes an emptyDir of medium Memory at /dev/shm"


def num_gpus(read_gpus: ReadGpus) -> int:
    gpus = read_gpus()
    return 0 if isinstance(gpus, NoGpus) else len(gpus)


def check_shared_memory(folder: Path, read_gpus: ReadGpus) -> Finding:
    """Wants 1 GiB: Ray keeps objects there and NCCL its buffers. Docker gives 64 MiB unless told otherwise."""
    if not folder.is_dir():
        return Finding("shared memory", Status.SKIPPED, f"this system has no {folder}")
    size = shutil.disk_usage(folder)
    message = f"{size.free / GIB:.1f} of {size.total / GIB:.1f} GiB free in {folder}"
    if size.free >= GIB:
        return Finding("shared memory", Status.OK, message)
    if num_gpus(read_gpus) > 1:
        return Finding("shared memory", Status.PROBLEM, f"{message}: too little for several GPUs", _SHM_REMEDY)
    return Finding("shared memory", Status.WARNING, f"{message}: Ray puts its objects on the disk then", _SHM_REMEDY)


def check_disk(use: str, folder: Path) -> Finding:
    """Wants room for videos and the right to write; looks at the nearest folder that exists."""
    check = f"disk for {use}"
    whole = folder.absolute()
    nearest = next(part for part in (whole, *whole.parents) if part.is_dir())
    if not os.access(nearest, os.W_OK):
        return Finding(check, Status.PROBLEM, f"{nearest} cannot be written", "choose another folder, or its rights")
    free_bytes = shutil.disk_usage(nearest).free
    message = f"{free_bytes / GIB:.1f} GiB free in {nearest}"
    if free_bytes >= 10 * GIB:
        return Finding(check, Status.OK, message)
    status = Status.WARNING if free_bytes >= GIB else Status.PROBLEM
    return Finding(check, status, message, "free space there, or choose a folder on a larger disk")


def check_open_files() -> Finding:
    """Looks at the hard limit: Ray raises the soft one to it by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "no limit" if hard == resource.RLIM_INFINITY else str(hard)
    message = f"limit {soft}, can be raised to {shown}"
    if hard == resource.RLIM_INFINITY or hard >= 8192:
        return Finding("open files", Status.OK, message)
    remedy = "ulimit -Hn 65536, docker run --ulimit nofile=65536, or LimitNOFILE of the service"
    return Finding("open files", Status.WARNING, f"{message}: few for Ray", remedy)


def check_cpus(limits: Limits, read_gpus: ReadGpus) -> Finding:
    """Wants a processor for every GPU's process and one more."""
    machine = os.cpu_count() or 1
    cpus = min(machine, limits.cpus or machine)
    message = (
        f"{cpus:g} processors" if cpus == machine else f"{cpus:g} of {machine} processors (limit of the container)"
    )
    needed = num_gpus(read_gpus) + 1
    if cpus >= needed:
        return Finding("processors", Status.OK, message)
    return Finding("processors", Status.WARNING, message, f"give it {needed} or more, or the GPUs will wait")


def check_memory(meminfo: Path, limits: Limits) -> Finding:
    """Wants 2 GiB that are free."""
    if not meminfo.is_file():
        return Finding("memory", Status.SKIPPED, f"this system has no {meminfo}")
    told = dict(re.findall(r"^(\w+):\s+(\d+) kB$", meminfo.read_text(), flags=re.MULTILINE))
    total_bytes, free_bytes = (int(told[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    message = f"{free_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB free"
    if limits.memory_bytes is not None and limits.memory_bytes < total_bytes:
        message += f", {limits.memory_bytes / GIB:.1f} GiB allowed to the container"
        free_bytes = min(free_bytes, limits.memory_bytes)
    if free_bytes >= 2 * GIB:
        return Finding("memory", Status.OK, message)
    return Finding("memory", Status.WARNING, message, "end other programs, or give the container more memory")
