"""Watches the GPUs of this machine: a thread that samples and passes the samples on. It decides nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from ray_cluster.nvml import GpuReadError, GpuSample, GpuSampler

Listener = Callable[[Sequence[GpuSample]], None]
"""Takes the samples of one round, one per GPU; called in the monitor's thread, so it should be quick."""

LOG_COLUMNS = ("timestamp", "memory.used [MiB]", "index", "name", "memory.free [MiB]", "utilization.gpu [%]")
_MIB = 2**20

log = logging.getLogger(__name__)


class GpuMonitor:
    """Samples at once and then every `interval_s`, in a thread of its own, until its `with` block ends.

    A listener or a GPU that fails is logged when its trouble begins and when it is over; the rest goes on.
    """

    def __init__(
        self, sampler: GpuSampler, *, interval_s: float, listeners: Sequence[Listener], stop_timeout_s: float = 5.0
    ) -> None:
        if interval_s <= 0:
            raise ValueError(f"interval_s {interval_s} is not above 0; nvidia-smi's users take 1")
        self._sampler = sampler
        self._interval_s = interval_s
        self._listeners = tuple(listeners)
        self._stop_timeout_s = stop_timeout_s
        self._is_stopping = threading.Event()
        self._failing: set[str] = set()
        self._thread = threading.Thread(target=self._watch, name="gpu-monitor", daemon=True)

    def __enter__(self) -> GpuMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping.set()
        self._thread.join(self._stop_timeout_s)
        if self._thread.is_alive():  # a driver that hangs, or a listener; the process may end all the same
            log.warning("gpu monitor did not end", extra={"waited_s": self._stop_timeout_s})

    def _watch(self) -> None:
        while True:
            self._sample_once()
            if self._is_stopping.wait(self._interval_s):
                return

    def _sample_once(self) -> None:
        try:
            samples = self._sampler.sample()
        except GpuReadError as error:
            self._note("gpus", error)
            return
        self._note("gpus", None)
        for number, listener in enumerate(self._listeners):
            try:
                listener(samples)
            except Exception as error:
                self._note(f"listener {number}", error)
            else:
                self._note(f"listener {number}", None)

    def _note(self, part: str, error: Exception | None) -> None:
        """Logs the first failure of a row of failures, and the end of the row."""
        if error is None:
            if part in self._failing:
                self._failing.remove(part)
                log.info("gpu monitor recovered", extra={"part": part})
        elif part not in self._failing:
            self._failing.add(part)
            log.warning("gpu monitor fails", extra={"part": part, "error": str(error)}, exc_info=error)


class GpuLog:
    """A listener that writes one row per GPU and round, as `nvidia-smi --query-gpu=... --format=csv -l 1` does.

    The first two columns are those of `--query-gpu=timestamp,memory.used`, so that whatever reads such a log goes on
    working; the GPU's index and more follow, because a machine has several GPUs. Rows are added to a file that exists.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError when `path` cannot be written."""
        self._file: IO[str] = path.open("a", encoding="utf-8", newline="")
        if not self._file.tell():
            self._file.write(", ".join(LOG_COLUMNS) + "\n")
            self._file.flush()

    def __enter__(self) -> GpuLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __call__(self, samples: Sequence[GpuSample]) -> None:
        self._file.writelines(_log_row(sample) for sample in samples)
        self._file.flush()  # whoever follows the file sees whole rounds


def _log_row(sample: GpuSample) -> str:
    local = datetime.fromtimestamp(sample.unix_s).astimezone()
    busy = "[N/A]" if sample.utilisation_percent is None else f"{sample.utilisation_percent} %"
    cells = (
        f"{local:%Y/%m/%d %H:%M:%S}.{local.microsecond // 1000:03}",
        f"{sample.used_bytes // _MIB} MiB",
        f"{sample.index}",
        sample.name,
        f"{sample.free_bytes // _MIB} MiB",
        busy,
    )
    return ", ".join(cells) + "\n"


def ray_gauges() -> Listener:
    """Returns a listener that sets Ray's gauges, which Ray exports to Prometheus with the prefix `ray_`.

    Gauges by GPU index and name; Ray adds which node. Only a process that Ray runs exports them.
    """
    from ray.util.metrics import Gauge  # here, so that machines are watched without Ray too

    def gauge(name: str, description: str) -> Any:  # noqa: ANN401  (Ray's types are loose)
        return Gauge(name, description=description, tag_keys=("gpu", "gpu_name"))

    used = gauge("gpu_memory_used_bytes", "Memory of the GPU that programs hold")
    free = gauge("gpu_memory_free_bytes", "Memory of the GPU that programs can still have")
    busy = gauge("gpu_utilisation_percent", "Share of the time that the GPU computed")
    power = gauge("gpu_power_watts", "Electrical power that the GPU draws")
    temperature = gauge("gpu_temperature_celsius", "Temperature of the GPU")

    def show(samples: Sequence[GpuSample]) -> None:
        for sample in samples:
            tags = {"gpu": str(sample.index), "gpu_name": sample.name}
            used.set(sample.used_bytes, tags)
            free.set(sample.free_bytes, tags)
            busy.set(sample.utilisation_percent, tags)
            power.set(sample.power_w, tags)
            temperature.set(sample.temperature_c, tags)

    return show
