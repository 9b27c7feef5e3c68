"""NVML of a machine with GPUs: what pynvml would answer there."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

MIB = 2**20


class NVMLError(Exception):
    """As pynvml's."""


@dataclass
class FakeNvml:
    """Handles are indices. `lost` holds the GPUs that fell off the bus; `mute` makes all but memory unknown."""

    names: tuple[str, ...] = ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090")
    used_mib: int = 1024
    free_mib: int = 23193
    processes: dict[int, list[SimpleNamespace]] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    is_mute: bool = False
    knows_version_2: bool = True
    num_open: int = 0
    driver: str = "570.124.06"
    cuda: int = 12080

    nvmlMemory_v2 = 2
    NVMLError = NVMLError

    def nvmlInit(self) -> None:
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.names[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> SimpleNamespace:
        if handle in self.lost or (version == self.nvmlMemory_v2 and not self.knows_version_2):
            raise NVMLError("GPU is lost" if handle in self.lost else "Function Not Found")
        return SimpleNamespace(used=self.used_mib * MIB, free=self.free_mib * MIB)

    def nvmlDeviceGetUtilizationRates(self, _handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=self._told(97))

    def nvmlDeviceGetPowerUsage(self, _handle: int) -> int:
        return self._told(412_500)

    def nvmlDeviceGetTemperature(self, _handle: int, _sensor: int) -> int:
        return self._told(63)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return self.processes.get(handle, [])

    def _told(self, value: int) -> int:
        if self.is_mute:
            raise NVMLError("Not Supported")
        return value
