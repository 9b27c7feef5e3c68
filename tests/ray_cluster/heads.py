"""A Ray head of the test's own, with a dashboard, in a process group of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
READY_S = 120.0
END_S = 30.0
MAX_STARTS = 3
STARTED, GAVE_UP = "Ray runtime started", "The current node timed out during startup"


@dataclass(frozen=True)
class Head:
    """Where a head is found: `address` is its dashboard's, `metrics` what Prometheus reads; `pid` leads its group."""

    address: str
    metrics: str
    pid: int


@contextmanager
def ray_head(folder: Path, environ: Mapping[str, str], *, num_cpus: int = 8) -> Iterator[Head]:
    """Starts a head in `folder`, whose path has to be short, and ends it with all that it started."""
    starts = 0
    while True:
        starts += 1
        with _process(folder, environ, num_cpus) as (process, head):
            if _is_started(process, folder / "head.log", is_last=starts == MAX_STARTS):
                yield head
                return


@contextmanager
def _process(folder: Path, environ: Mapping[str, str], num_cpus: int) -> Iterator[tuple[subprocess.Popen[bytes], Head]]:
    port, metrics_port, agent_port = free_port(), free_port(), free_port()
    command = [BIN / "ray", "start", "--head", "--block", "--port=0", f"--num-cpus={num_cpus}", f"--temp-dir={folder}"]
    command += [
        f"--metrics-export-port={metrics_port}",
        f"--dashboard-agent-listen-port={agent_port}",  # a second head on this machine takes no jobs at the default
        "--include-dashboard=true",
        f"--dashboard-port={port}",
        "--dashboard-host=127.0.0.1",
    ]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process, Head(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics", process.pid)
    finally:
        end_head(process.pid)
        process.wait()


def _is_started(process: subprocess.Popen[bytes], log: Path, *, is_last: bool) -> bool:
    """Waits for a start; says False when Ray gave up after its half minute, which nothing makes longer."""
    deadline = time.monotonic() + READY_S
    while STARTED not in (told := log.read_text()):
        if process.poll() is not None and GAVE_UP in told and not is_last:
            return False
        assert process.poll() is None, told
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def end_head(pid: int) -> None:
    """Kills a head and all that it started: asked to end, Ray takes half a minute."""
    others: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        others = psutil.Process(pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for process in others:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(others, timeout=END_S)
