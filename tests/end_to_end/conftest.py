"""The command as users have it: a process of its own, in a folder of its own, with a cache of its own."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media.conftest import WriteWav, ffprobe, write_wav

__all__ = ["ffprobe", "write_wav"]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120
LIBC = ctypes.CDLL(None)
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2

RunCli = Callable[..., subprocess.CompletedProcess[str]]
"""run(*arguments, cwd, cache=None, limit=None): runs `live-avatar` to its end; `limit` is a resource and its value."""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes keep the tiny model; the first that renders makes it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def live_avatar(cache: Path) -> RunCli:
    def run(
        *arguments: str | bytes, cwd: Path, cache: Path = cache, limit: tuple[int, int] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "serve_app.cli", *arguments],
            cwd=cwd,
            env=environment(cache),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            preexec_fn=lambda: _confine(limit),
        )

    return run


def _confine(limit: tuple[int, int] | None) -> None:
    """In the child: sets the limit, and binds the superuser to the permissions of files like anybody else."""
    if limit is not None:
        resource.setrlimit(limit[0], (limit[1], limit[1]))
    if os.geteuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def environment(cache: Path) -> dict[str, str]:
    """Returns this process's environment with another cache; one thread, for two cores are often shared."""
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def inputs(tmp_path: Path, write_wav: WriteWav) -> Path:
    """A folder with portrait.png and voice.wav, 0.6 s = 15 frames, and nothing else."""
    Image.new("RGB", (512, 512), "gray").save(tmp_path / "portrait.png")
    write_wav(0.3 * np.sin(np.arange(9_600) / 20), 16_000)
    return tmp_path


class Running:
    """A command that is still at work."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.stderr = b""

    def wait_for(self, text: bytes) -> None:
        """Returns as soon as `text` stands on standard error; fails when the process ends or takes too long."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.stderr:
            ready, _, _ = select.select([self.process.stderr], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.process.stderr.fileno(), 65_536) if ready else b""
            assert chunk, f"{text!r} did not appear; standard error: {self.stderr.decode()}"
            self.stderr += chunk

    def stop(self, kind: signal.Signals) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(kind)
        _, rest = self.process.communicate(timeout=TIMEOUT_S)
        self.stderr += rest
        return self.process.returncode


@contextmanager
def started(*arguments: str, cwd: Path, cache: Path) -> Iterator[Running]:
    """Runs `live-avatar` beside the test, and kills it when the test is over."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serve_app.cli", *arguments],
        cwd=cwd,
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A test run in the background of a shell ignores Ctrl-C, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        try:
            yield Running(process)
        finally:
            process.kill()
