"""The service as users have it: `live-avatar serve` in a process of its own, on a port and a folder of its own."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from tests.end_to_end.conftest import cache, environment

__all__ = ["cache"]

READY_S = 120.0
ANSWER_S = 60.0
SETTINGS: dict[str, Any] = {
    "pools": [{"name": "tiny", "model": "live-avatar-tiny", "cpu_memory_gib": 2.0}],
    "times": {"lost_after_s": 4, "report_every_s": 0.3, "grace_s": 3},
}
PROMPT = "A friendly person in a bright office talks to the camera."


@dataclass
class Server:
    """One `live-avatar serve`; it may be killed and started again on the same data."""

    folder: Path
    cache: Path
    settings: dict[str, Any] = field(default_factory=lambda: SETTINGS)
    process: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=ANSWER_S)

    def start(self) -> None:
        config = self.folder / "service.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        arguments = ["serve", f"--port={self.port}", f"--data-dir={self.folder / 'data'}", f"--config={config}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.cli", *arguments],
            cwd=self.folder,
            env=environment(self.cache),
            stdout=subprocess.PIPE,
            stderr=(self.folder / "serve.log").open("a"),
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready"):
                return
        raise AssertionError((self.folder / "serve.log").read_text())

    def processes(self, title: str) -> list[psutil.Process]:
        """Returns the processes of this server whose title begins so: Ray names what each of them is."""
        assert self.process is not None
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(title):
                    found.append(process)
        return found

    def kill(self) -> None:
        """Kills the driver; its guard ends all others."""
        assert self.process is not None
        everything = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(everything, timeout=READY_S)
        assert not alive, alive

    def stop(self) -> int:
        """Asks it to stop, and returns its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(READY_S)

    def create(self, **fields: Any) -> dict[str, Any]:
        """Sends a portrait and a voice as a form; asserts that it is accepted."""
        answer = self.post(**fields)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def post(
        self, path: str = "/v1/videos", *, seconds: float = 1.0, headers: dict[str, str] | None = None, **fields: Any
    ) -> httpx2.Response:
        form = {"prompt": PROMPT, "size": "64x64", **{name: str(value) for name, value in fields.items()}}
        parts = {"input_reference": portrait(), "audio": voice(seconds)}
        return self.client.post(path, data=form, files=parts, headers=headers)

    def video(self, video_id: str) -> dict[str, Any]:
        return dict(self.client.get(f"/v1/videos/{video_id}").json())

    def until(self, video_id: str, is_so: Callable[[dict[str, Any]], bool], *, timeout_s: float = READY_S) -> Any:
        """Returns the video as soon as it is so; a service that restarts meanwhile is waited for."""
        deadline, video = time.monotonic() + timeout_s, {}
        while time.monotonic() < deadline:
            with suppress(httpx2.HTTPError, ValueError):
                answer = self.client.get(f"/v1/videos/{video_id}")
                if answer.status_code == 200:
                    video = answer.json()
                    if is_so(video):
                        return video
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout_s} s: {video}")

    def ended(self, video_id: str) -> dict[str, Any]:
        return dict(self.until(video_id, lambda video: video["status"] in ("completed", "failed", "cancelled")))

    def content(self, video_id: str) -> bytes:
        answer = self.client.get(f"/v1/videos/{video_id}/content")
        assert answer.status_code == 200, answer.text
        return answer.content


def portrait(side: int = 512) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "gray").save(buffer, "PNG")
    return buffer.getvalue()


def voice(seconds: float) -> bytes:
    """Returns a WAV of a tone."""
    samples = (0.3 * np.sin(np.arange(round(seconds * 16_000)) / 20) * 32_767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


@contextmanager
def served(folder: Path, cache: Path, **settings: Any) -> Iterator[Server]:
    server = Server(folder, cache, settings={**SETTINGS, **settings})
    server.start()
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
        server.client.close()
        if server.process is not None and server.process.stdout is not None:
            server.process.stdout.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Server]:
    """One service for all tests that leave it as it was: with one group of the tiny model."""
    assert os.environ.get("RAY_ADDRESS") is None
    with served(tmp_path_factory.mktemp("service"), cache) as running:
        yield running
