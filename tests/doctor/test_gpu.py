"""GPUs, what holds their memory, and driver, torch and NCCL fitting together."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from ray_cluster.inventory import Gpu
from ray_cluster.nvml import GpuReadError, GpuSampler, NoGpus, open_gpus
from serve_app.doctor import gpu
from serve_app.doctor.finding import Status
from serve_app.doctor.packages import TorchBuild
from tests.ray_cluster.fake_nvml import MIB, FakeNvml

NONE = NoGpus("NVML says: NVML Shared Library Not Found", is_fault=False)
RTX4090 = Gpu(index=0, kind="RTX4090", total_bytes=24217 * MIB, free_bytes=23193 * MIB)
H200 = Gpu(index=1, kind="H200", total_bytes=140 * 1024 * MIB, free_bytes=1024 * MIB)
FOR_CUDA = TorchBuild("2.13.0+cu128", (12, 8))


def no_gpus() -> NoGpus:
    return NONE


def opened(nvml: FakeNvml) -> GpuSampler:
    sampler = open_gpus(nvml)
    assert isinstance(sampler, GpuSampler)
    return sampler


def test_a_machine_without_gpus_is_no_problem() -> None:
    found = gpu.check_gpus(no_gpus)
    assert found.status is Status.SKIPPED
    assert found.message.startswith("no GPU: the tiny model runs on the CPU")
    assert gpu.check_gpu_memory(no_gpus).status is Status.SKIPPED
    assert gpu.check_driver(no_gpus, FOR_CUDA).status is Status.SKIPPED
    assert gpu.check_nccl(no_gpus, FOR_CUDA, lambda _: None).status is Status.SKIPPED


def test_gpus_are_counted_by_kind() -> None:
    found = gpu.check_gpus(lambda: (RTX4090, RTX4090, H200))
    assert found.message == "2x RTX4090 of 23.65 GiB, 1x H200 of 140.00 GiB; free: 22.65, 22.65, 1.00 GiB"


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("NVML says: Driver/library version mismatch", "install a newer NVIDIA driver"),
        ("NVML says: Driver Not Loaded", "let nvidia-smi list the GPUs"),
    ],
)
def test_a_broken_driver_is_a_problem(reason: str, remedy: str) -> None:
    found = gpu.check_gpus(lambda: NoGpus(reason, is_fault=True))
    assert found.status is Status.PROBLEM
    assert reason in found.message
    assert found.remedy.startswith(remedy)


def test_a_gpu_that_does_not_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> tuple[Gpu, ...]:
        raise GpuReadError("GPU 1 (NVIDIA L4): NVML says: GPU is lost")

    monkeypatch.setattr(gpu, "local_gpus", fail)
    found = gpu.check_gpus(gpu.read_gpus)
    assert "GPU 1 (NVIDIA L4)" in found.message
    assert found.remedy.startswith("restart the machine")


def test_processes_that_hold_gpu_memory_are_named() -> None:
    holder = SimpleNamespace(pid=os.getpid(), usedGpuMemory=18 * 1024 * MIB)
    nvml = FakeNvml(used_mib=18_500, processes={1: [holder]})
    found = gpu.check_gpu_memory(lambda: opened(nvml))
    assert found.status is Status.WARNING
    assert "GPU 0: 18.1 GiB held by no process that is visible here; GPU 1: 18.1 GiB held by pid" in found.message
    assert f"pid {os.getpid()} (" in found.message
    assert found.remedy.endswith(f"kill -9 {os.getpid()}")
    assert nvml.num_open == 0


def test_memory_that_is_held_out_of_sight_is_told() -> None:
    found = gpu.check_gpu_memory(lambda: opened(FakeNvml(used_mib=18_500)))
    assert (found.status, found.remedy) == (Status.WARNING, "look outside this container, or on the host: nvidia-smi")


def test_a_desktop_does_not_count_as_holding_memory() -> None:
    assert gpu.check_gpu_memory(lambda: opened(FakeNvml(used_mib=600))).status is Status.OK


@pytest.mark.parametrize(
    ("build", "driver_cuda", "status"),
    [
        (FOR_CUDA, 12080, Status.OK),
        (FOR_CUDA, 12020, Status.OK),  # a minor version behind
        (FOR_CUDA, 13000, Status.OK),
        (FOR_CUDA, 11080, Status.PROBLEM),
        (TorchBuild("2.13.0+cpu", None), 12080, Status.PROBLEM),
        (None, 12080, Status.SKIPPED),
    ],
)
def test_torch_is_made_for_a_cuda_that_the_driver_runs(
    build: TorchBuild | None, driver_cuda: int, status: Status
) -> None:
    found = gpu.check_driver(lambda: opened(FakeNvml(cuda=driver_cuda)), build)
    assert found.status is status
    assert build is None or build.version in found.message


def test_several_gpus_want_the_nccl_of_their_torch() -> None:
    found = gpu.check_nccl(lambda: (RTX4090, H200), FOR_CUDA, {"nvidia-nccl-cu12": "2.27.5"}.get)
    assert (found.status, found.message) == (Status.OK, "NCCL 2.27.5")
    assert gpu.check_nccl(lambda: (RTX4090, H200), FOR_CUDA, lambda _: None).status is Status.WARNING
    assert gpu.check_nccl(lambda: (RTX4090,), FOR_CUDA, lambda _: None).status is Status.SKIPPED
