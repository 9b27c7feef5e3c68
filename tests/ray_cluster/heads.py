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
STARTED = "Ray runtime started"


@dataclass(frozen=True)
class Head:
    """Where a head is found: `address` is its dashboard's, `metrics` what Prometheus reads; `pid` leads its group."""

    address: str
    metrics: str
    pid: int


@contextmanager
def ray_head(folder: Path, environ: Mapping[str, str], *, num_cpus: int = 8) -> Iterator[Head]:
    """Starts a head in `folder`, whose path has to be short, and ends it with all that it started."""
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
    head = Head(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics", process.pid)
    try:
        _wait_until_started(process, folder / "head.log")
        yield head
    finally:
        end_head(process.pid)
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_until_started(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while STARTED not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def end_head(pid: int) -> None:
    """Kills a head and all that it started: asked to end, Ray takes half a minute."""
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        others = psutil.Process(pid).children(recursive=True)
        os.killpg(pid, signal.SIGKILL)
        for process in others:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(others, timeout=END_S)
