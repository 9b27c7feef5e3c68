"""GPUs are read, watched and logged; a machine without any says so."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from ray.util.metrics import Gauge

from ray_cluster.gpu_monitor import GpuLog, GpuMonitor, ray_gauges
from ray_cluster.nvml import GpuProcess, GpuReadError, GpuSample, GpuSampler, NoGpus, open_gpus
from tests.ray_cluster.fake_nvml import MIB, FakeNvml, NVMLError

TIMEOUT_S = 10.0
SAMPLE = GpuSample(
    unix_s=0.0,
    index=0,
    name="NVIDIA L4",
    used_bytes=MIB,
    free_bytes=3 * MIB,
    utilisation_percent=None,
    power_w=None,
    temperature_c=None,
)


def opened(nvml: FakeNvml) -> GpuSampler:
    sampler = open_gpus(nvml)
    assert isinstance(sampler, GpuSampler)
    return sampler


class Rounds:
    """A listener that counts, and lets a test wait for a round."""

    def __init__(self) -> None:
        self.seen: list[Sequence[GpuSample]] = []
        self._changed = threading.Condition()

    def __call__(self, samples: Sequence[GpuSample]) -> None:
        with self._changed:
            self.seen.append(samples)
            self._changed.notify_all()

    def wait_for(self, num_rounds: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= num_rounds, TIMEOUT_S), f"{len(self.seen)} rounds"


@pytest.fixture
def rounds() -> Iterator[Rounds]:
    yield Rounds()
    assert "gpu-monitor" not in {thread.name for thread in threading.enumerate()}


def test_a_sample_tells_memory_and_load_of_every_gpu() -> None:
    with opened(FakeNvml()) as sampler:
        first, second = sampler.sample()
    assert (first.index, second.index) == (0, 1)
    assert first.name == "NVIDIA GeForce RTX 4090"
    assert (first.used_bytes, first.free_bytes, first.total_bytes) == (1024 * MIB, 23193 * MIB, 24217 * MIB)
    assert (first.utilisation_percent, first.power_w, first.temperature_c) == (97, 412.5, 63)


def test_what_a_gpu_does_not_tell_is_none_and_old_drivers_tell_memory_too() -> None:
    with opened(FakeNvml(is_mute=True, knows_version_2=False)) as sampler:
        first = sampler.sample()[0]
    assert (first.utilisation_percent, first.power_w, first.temperature_c) == (None, None, None)
    assert first.free_bytes == 23193 * MIB


def test_the_sampler_tells_processes_driver_and_cuda_and_leaves_nvml_closed() -> None:
    nvml = FakeNvml(processes={1: [SimpleNamespace(pid=4711, usedGpuMemory=8 * MIB)]})
    with opened(nvml) as sampler:
        assert sampler.processes() == (GpuProcess(gpu_index=1, pid=4711, used_bytes=8 * MIB),)
        assert (sampler.driver_version(), sampler.cuda_version()) == ("570.124.06", (12, 8))
    assert nvml.num_open == 0


def test_a_lost_gpu_is_named() -> None:
    with opened(FakeNvml(lost={1})) as sampler, pytest.raises(GpuReadError, match=r"GPU 1 \(.*4090\): .*GPU is lost"):
        sampler.sample()


def test_this_machine_is_read_or_says_why_not() -> None:
    match open_gpus():
        case NoGpus(reason=reason):
            assert reason.startswith("NVML says: ")
        case sampler:
            with sampler:
                assert all(sample.total_bytes > 0 for sample in sampler.sample())


@pytest.mark.parametrize(
    ("error", "is_fault"),
    [(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, False), (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, True)],
)
def test_a_machine_without_a_driver_is_no_fault_but_a_broken_driver_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: int, is_fault: bool
) -> None:
    def fail(_flags: int) -> None:
        raise pynvml.NVMLError(error)

    monkeypatch.setattr(pynvml, "nvmlInitWithFlags", fail)
    monkeypatch.setattr("ray_cluster.nvml._GPU_DEVICE", tmp_path / "no-device")
    assert open_gpus() == NoGpus(f"NVML says: {pynvml.NVMLError(error)}", is_fault=is_fault)


def test_a_device_without_a_driver_library_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801, N818  (pynvml's name)
        """As pynvml's."""

    def fail() -> None:
        raise NVMLError_LibraryNotFound

    nvml = FakeNvml()
    monkeypatch.setattr(nvml, "nvmlInit", fail)
    monkeypatch.setattr("ray_cluster.nvml._GPU_DEVICE", tmp_path)
    found = open_gpus(nvml)
    assert isinstance(found, NoGpus)
    assert found.is_fault


def test_a_driver_that_shows_no_gpu_is_a_fault_and_is_closed() -> None:
    nvml = FakeNvml(names=())
    assert open_gpus(nvml) == NoGpus("the driver shows no GPU", is_fault=True)
    assert nvml.num_open == 0


def test_the_monitor_samples_at_once_and_again_and_ends_with_its_block(rounds: Rounds) -> None:
    other = Rounds()
    with (
        opened(FakeNvml()) as sampler,
        GpuMonitor(sampler, interval_s=0.001, listeners=[rounds, other]),
    ):
        rounds.wait_for(3)
        other.wait_for(3)
    assert [sample.index for sample in rounds.seen[0]] == [0, 1]


def test_the_monitor_ends_at_once_however_long_its_interval(rounds: Rounds) -> None:
    with opened(FakeNvml()) as sampler, GpuMonitor(sampler, interval_s=3600, listeners=[rounds]):
        rounds.wait_for(1)
    assert len(rounds.seen) == 1


def test_a_failing_listener_is_logged_once_and_the_others_go_on(
    rounds: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_samples: Sequence[GpuSample]) -> None:
        raise OSError("disk full")

    with opened(FakeNvml()) as sampler, GpuMonitor(sampler, interval_s=0.001, listeners=[fail, rounds]):
        rounds.wait_for(3)
    assert [record.message for record in caplog.records] == ["gpu monitor fails"]


def test_a_gpu_that_comes_back_is_sampled_again(
    rounds: Rounds, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    nvml = FakeNvml()
    read, failures = nvml.nvmlDeviceGetMemoryInfo, iter([True] * 6)

    def read_after_a_while(handle: int, version: int | None = None) -> SimpleNamespace:
        if next(failures, False):
            raise NVMLError("GPU is lost")
        return read(handle, version)

    monkeypatch.setattr(nvml, "nvmlDeviceGetMemoryInfo", read_after_a_while)
    with opened(nvml) as sampler, GpuMonitor(sampler, interval_s=0.001, listeners=[rounds]):
        rounds.wait_for(1)
    assert [record.message for record in caplog.records] == ["gpu monitor fails", "gpu monitor recovered"]


def test_a_driver_that_hangs_does_not_hold_the_end_up(caplog: pytest.LogCaptureFixture) -> None:
    hang, release = threading.Event(), threading.Event()

    def listen(_samples: Sequence[GpuSample]) -> None:
        hang.set()
        release.wait(TIMEOUT_S)

    with (
        opened(FakeNvml()) as sampler,
        GpuMonitor(sampler, interval_s=1, listeners=[listen], stop_timeout_s=0.01) as monitor,
    ):
        assert hang.wait(TIMEOUT_S)
    assert [record.message for record in caplog.records] == ["gpu monitor did not end"]
    release.set()
    monitor._thread.join(TIMEOUT_S)


def test_an_interval_is_above_zero() -> None:
    with opened(FakeNvml()) as sampler, pytest.raises(ValueError, match="interval_s 0 is not above 0"):
        GpuMonitor(sampler, interval_s=0, listeners=[])


def test_the_log_reads_like_that_of_nvidia_smi(tmp_path: Path) -> None:
    path = tmp_path / "gpu_log.csv"
    with opened(FakeNvml()) as sampler, GpuLog(path) as gpu_log:
        gpu_log(sampler.sample())
        header, first, second = path.read_text().splitlines()
    assert header.startswith("timestamp, memory.used [MiB], index, name, ")
    assert re.fullmatch(
        r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3}, 1024 MiB, 0, NVIDIA GeForce RTX 4090, 23193 MiB, 97 %", first
    )
    assert second.split(", ")[2] == "1"


def test_a_log_is_continued_under_one_header(tmp_path: Path) -> None:
    for _ in range(2):
        with GpuLog(tmp_path / "gpu_log.csv") as gpu_log:
            gpu_log([SAMPLE])
    header, *rows = (tmp_path / "gpu_log.csv").read_text().splitlines()
    assert header.startswith("timestamp")
    assert [row.split(", ")[1:] for row in rows] == [["1 MiB", "0", "NVIDIA L4", "3 MiB", "[N/A]"]] * 2


def test_rays_gauges_show_every_gpu_and_take_what_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[tuple[str, str], Any] = {}
    set_for_real = Gauge.set

    def note_and_set(gauge: Gauge, value: float | None, tags: dict[str, str]) -> None:
        shown[gauge.info["name"], tags["gpu"]] = value
        set_for_real(gauge, value, tags)

    monkeypatch.setattr(Gauge, "set", note_and_set)
    with opened(FakeNvml()) as sampler:
        show = ray_gauges()
        show(sampler.sample())
    assert shown["gpu_memory_used_bytes", "1"] == 1024 * MIB
    assert shown["gpu_memory_free_bytes", "0"] == 23193 * MIB
    assert (shown["gpu_power_watts", "0"], shown["gpu_utilisation_percent", "1"]) == (412.5, 97)
    show([SAMPLE])
    assert shown["gpu_temperature_celsius", "0"] is None
