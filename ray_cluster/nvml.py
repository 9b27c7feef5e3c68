"""Reads the GPUs of this machine through NVML, NVIDIA's own interface; a machine without any says so."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

_Read = TypeVar("_Read")
_GPU_DEVICE = Path("/dev/nvidiactl")  # there as soon as a driver is loaded, also inside containers that were given GPUs


@dataclass(frozen=True)
class GpuSample:
    """One GPU at one moment.

    `total_bytes` is what programs can use, and what torch calls total memory: used plus free. `nvidia-smi` shows some
    hundred MiB more, which the driver keeps for itself. None stands for what the GPU does not tell.
    """

    unix_s: float
    index: int
    name: str
    used_bytes: int
    free_bytes: int
    utilisation_percent: int | None
    power_w: float | None
    temperature_c: int | None

    @property
    def total_bytes(self) -> int:
        return self.used_bytes + self.free_bytes


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU; NVML sees the processes of its own container only."""

    gpu_index: int
    pid: int
    used_bytes: int | None


@dataclass(frozen=True)
class NoGpus:
    """Why there are no GPUs to read; `is_fault` tells a broken driver from a machine that has none."""

    reason: str
    is_fault: bool


class GpuReadError(RuntimeError):
    """A GPU that was there cannot be read any more."""


class Nvml(Protocol):
    """The part of pynvml that is used, under its own names."""

    nvmlMemory_v2: int
    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlSystemGetDriverVersion(self) -> str: ...
    def nvmlSystemGetCudaDriverVersion(self) -> int: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetName(self, handle: Any) -> str: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any: ...
    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int: ...
    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Any: ...


def open_gpus(nvml: Nvml | None = None) -> GpuSampler | NoGpus:
    """Opens all GPUs of this machine, through `nvml` or else pynvml; the caller closes the sampler."""
    try:
        nvml = nvml or importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return NoGpus("nvidia-ml-py is not installed", is_fault=_GPU_DEVICE.exists())
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        has_library = type(error).__name__ != "NVMLError_LibraryNotFound"
        return NoGpus(_said(error), is_fault=has_library or _GPU_DEVICE.exists())
    try:
        return GpuSampler(nvml) if nvml.nvmlDeviceGetCount() else _closed(nvml, "the driver shows no GPU")
    except nvml.NVMLError as error:
        return _closed(nvml, _said(error))


def _closed(nvml: Nvml, reason: str) -> NoGpus:
    nvml.nvmlShutdown()
    return NoGpus(reason, is_fault=True)


class GpuSampler:
    """Reads all GPUs of this machine, whatever CUDA_VISIBLE_DEVICES says; may be used from several threads."""

    def __init__(self, nvml: Nvml) -> None:
        """Takes an initialised NVML, to be shut down by `close`."""
        self._nvml = nvml
        self._gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        self._names = [nvml.nvmlDeviceGetName(gpu) for gpu in self._gpus]

    def __enter__(self) -> GpuSampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def sample(self) -> tuple[GpuSample, ...]:
        """Returns one sample per GPU; raises GpuReadError that names the GPU which does not answer."""
        return tuple(self._reading(index, self._sample_one) for index in range(len(self._gpus)))

    def processes(self) -> tuple[GpuProcess, ...]:
        """Returns the processes that compute on any GPU; raises GpuReadError."""
        return tuple(
            process for index in range(len(self._gpus)) for process in self._reading(index, self._processes_of)
        )

    def driver_version(self) -> str:
        return self._nvml.nvmlSystemGetDriverVersion()

    def cuda_version(self) -> tuple[int, int]:
        """Returns the newest CUDA that the driver runs, as (major, minor)."""
        version = self._nvml.nvmlSystemGetCudaDriverVersion()
        return version // 1000, version % 1000 // 10

    def _reading(self, index: int, read: Callable[[int], _Read]) -> _Read:
        try:
            return read(index)
        except self._nvml.NVMLError as error:
            raise GpuReadError(f"GPU {index} ({self._names[index]}): {_said(error)}") from error

    def _sample_one(self, index: int) -> GpuSample:
        gpu = self._gpus[index]
        memory = self._memory(gpu)
        milliwatts = self._told(lambda: self._nvml.nvmlDeviceGetPowerUsage(gpu))
        return GpuSample(
            unix_s=time.time(),
            index=index,
            name=self._names[index],
            used_bytes=memory.used,
            free_bytes=memory.free,
            utilisation_percent=self._told(lambda: int(self._nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)),
            power_w=None if milliwatts is None else milliwatts / 1000,
            temperature_c=self._told(lambda: self._nvml.nvmlDeviceGetTemperature(gpu, 0)),
        )

    def _memory(self, gpu: Any) -> Any:
        """Version 2 tells the driver's own share apart from the used bytes; drivers before 510 know version 1 only."""
        memory = self._told(lambda: self._nvml.nvmlDeviceGetMemoryInfo(gpu, self._nvml.nvmlMemory_v2))
        return self._nvml.nvmlDeviceGetMemoryInfo(gpu) if memory is None else memory

    def _told(self, read: Callable[[], _Read]) -> _Read | None:
        try:
            return read()
        except self._nvml.NVMLError:
            return None

    def _processes_of(self, index: int) -> list[GpuProcess]:
        found = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._gpus[index])
        return [GpuProcess(index, process.pid, process.usedGpuMemory) for process in found]


def _said(error: Exception) -> str:
    return f"NVML says: {error}"
