"""Checks of GPUs, of what holds their memory, and of driver, torch and NCCL fitting together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ray_cluster.inventory import Gpu, local_gpus
from ray_cluster.nvml import GpuReadError, GpuSample, GpuSampler, NoGpus
from serve_app.doctor.finding import Finding, Status
from serve_app.doctor.packages import TorchBuild, VersionOf
from serve_app.troubleshooting import remedy_for

GIB = 2**30
OpenGpus = Callable[[], GpuSampler | NoGpus]
ReadGpus = Callable[[], tuple[Gpu, ...] | NoGpus]

_HELD_BYTES = GIB  # a desktop holds less
_REPAIR = "let nvidia-smi list the GPUs: install or repair the NVIDIA driver; start a container with --gpus all"


def read_gpus() -> tuple[Gpu, ...] | NoGpus:
    """Returns the GPUs of this machine; one that does not answer makes all of them unusable."""
    try:
        return local_gpus()
    except GpuReadError as error:
        return NoGpus(str(error), is_fault=True)


def check_gpus(read_gpus: ReadGpus) -> Finding:
    match read_gpus():
        case NoGpus(reason=reason, is_fault=True):
            return Finding("gpus", Status.PROBLEM, f"no GPU can be used: {reason}", remedy_for(reason) or _REPAIR)
        case NoGpus(reason=reason):
            return Finding("gpus", Status.SKIPPED, f"no GPU: the tiny model runs on the CPU ({reason})")
        case gpus:
            return Finding("gpus", Status.OK, _listed(gpus))


def _listed(gpus: tuple[Gpu, ...]) -> str:
    kinds = Counter((gpu.kind, f"{gpu.total_bytes / GIB:.2f}") for gpu in gpus)
    counted = ", ".join(f"{count}x {kind} of {total} GiB" for (kind, total), count in kinds.items())
    return f"{counted}; free: {', '.join(f'{gpu.free_bytes / GIB:.2f}' for gpu in gpus)} GiB"


def check_gpu_memory(open_gpus: OpenGpus) -> Finding:
    """Warns of memory that is held already; a crash may leave processes behind that hold it."""
    opened = open_gpus()
    if isinstance(opened, NoGpus):
        return Finding("gpu memory", Status.SKIPPED, "no GPU")
    with opened:
        processes = opened.processes()
        held = [sample for sample in opened.sample() if sample.used_bytes > _HELD_BYTES]
    if not held:
        return Finding("gpu memory", Status.OK, "nobody holds any")
    named = {(process.gpu_index, process.pid): process.used_bytes for process in processes}
    pids = " ".join(map(str, sorted({pid for _, pid in named})))
    seen = f"ps -fp '{pids}' shows them; what a crash left behind: kill -9 {pids}" if pids else ""
    unseen = "look outside this container, or on the host: nvidia-smi"
    return Finding("gpu memory", Status.WARNING, "; ".join(_held(gpu, named) for gpu in held), seen or unseen)


def _held(gpu: GpuSample, named: dict[tuple[int, int], int | None]) -> str:
    holders = [
        f"pid {pid} ({_program(pid)})" + ("" if used is None else f" {used / GIB:.1f} GiB")
        for (index, pid), used in named.items()
        if index == gpu.index
    ]
    who = ", ".join(holders) or "no process that is visible here"
    return f"GPU {gpu.index}: {gpu.used_bytes / GIB:.1f} GiB held by {who}"


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "unknown"


def check_driver(open_gpus: OpenGpus, build: TorchBuild | None) -> Finding:
    """Compares the CUDA that torch was built for with what the driver runs."""
    if build is None:
        return Finding("driver and torch", Status.SKIPPED, "torch is not installed")
    opened = open_gpus()
    if isinstance(opened, NoGpus):
        return Finding("driver and torch", Status.SKIPPED, f"{build}; no driver to compare with")
    with opened:
        version, cuda = opened.driver_version(), opened.cuda_version()
    both = f"{build}; driver {version} runs CUDA up to {_dotted(cuda)}"
    if build.cuda is None:
        return Finding("driver and torch", Status.PROBLEM, both, "install the build of torch for CUDA (pytorch.org)")
    if build.cuda[0] > cuda[0]:  # within one major version newer builds run on older drivers
        return Finding(
            "driver and torch",
            Status.PROBLEM,
            both,
            f"install a driver for CUDA {build.cuda[0]}, or a build of torch for CUDA {cuda[0]}",
        )
    return Finding("driver and torch", Status.OK, both)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def check_nccl(read_gpus: ReadGpus, build: TorchBuild | None, version_of: VersionOf) -> Finding:
    """Looks for the NCCL that torch loads; only several GPUs need it."""
    gpus = read_gpus()
    if isinstance(gpus, NoGpus) or len(gpus) < 2:
        return Finding("nccl", Status.SKIPPED, "needed between several GPUs only")
    if build is None or build.cuda is None:
        return Finding("nccl", Status.SKIPPED, "comes with the build of torch for CUDA")
    package = f"nvidia-nccl-cu{build.cuda[0]}"
    version = version_of(package)
    if version is None:
        return Finding(
            "nccl",
            Status.WARNING,
            f"{package} is not installed; torch may have NCCL inside",
            "python -c 'import torch; print(torch.cuda.nccl.version())' tells; else install torch again with pip",
        )
    return Finding("nccl", Status.OK, f"NCCL {version}")
