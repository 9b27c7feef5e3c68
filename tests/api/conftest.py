"""The API on a real port, over a real store and real files; only the Dispatcher and the leaders are the test's."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from PIL import Image

from serve_app.api.app import build_api
from serve_app.jobs.job import Job
from serve_app.jobs.store import BlockReport, JobStore
from serve_app.schemas.service import PoolConfig, ServiceConfig
from serve_app.storage.files import FileStore
from serve_app.storage.videos import LiveVideo, VideoFiles
from tests.api.fake_service import FakeService

PROMPT = "A friendly person in a bright office talks to the camera."
ANSWER_S = 20.0


def portrait(side: int = 512, *, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "gray").save(buffer, kind)
    return buffer.getvalue()


def voice(seconds: float = 1.0) -> bytes:
    samples = (0.3 * np.sin(np.arange(round(seconds * 16_000)) / 20) * 32_767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


PORTRAIT, VOICE = portrait(), voice()


def new_client(url: str, *, timeout_s: float = ANSWER_S) -> httpx2.Client:
    """Returns a client without certificates, which take long to read."""
    return httpx2.Client(base_url=url, timeout=timeout_s, verify=False)


@dataclass
class Leader:
    """Makes a video fragment by fragment, as a leader does, when the test says so."""

    server: Server
    job: Job
    video: LiveVideo
    num_blocks: int
    blocks_done: int = 0
    is_begun: bool = False

    def append(self, fragment: bytes) -> None:
        self.video.append(fragment)
        if self.is_begun:
            self.blocks_done += 1
            report = BlockReport(self.job.id, self.job.attempt, self.blocks_done, self.num_blocks)
            self.server.store.report([report])
        self.is_begun = True

    def complete(self, **result: Any) -> None:
        location = self.video.commit()
        self.server.store.complete(self.job.id, attempt=self.job.attempt, location=location, result=result)
        self.server.videos.end(self.job.id)


@dataclass
class Server:
    """The API and what is behind it."""

    folder: Path
    config: ServiceConfig
    client: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.store = JobStore.take_over(self.folder / "jobs.sqlite", wall_clock=time.time)
        self.files, self.videos = FileStore(self.folder), VideoFiles(self.folder)
        self.service = FakeService(self.store)
        self.app = build_api(self.service, files=self.files, videos=self.videos, config=self.config)

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def post(self, path: str = "/v1/videos", *, headers: Any = None, files: Any = None, **fields: Any) -> Any:
        """Sends a form with a portrait and a voice."""
        form = {"prompt": PROMPT, **{name: str(value) for name, value in fields.items()}}
        parts = {"input_reference": PORTRAIT, "audio": VOICE} if files is None else files
        return self.client.post(path, data=form, files=parts, headers=headers)

    def create(self, **fields: Any) -> str:
        answer = self.post(**fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def error(self, answer: Any, status: int, code: str) -> dict[str, Any]:
        """Returns the error of an answer, whose envelope must be whole."""
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error.keys() == {"code", "message", "type", "param", "details"}
        assert error["code"] == code, error
        assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
        return dict(error)

    @contextlib.contextmanager
    def leading(self, video_id: str, *, num_blocks: int = 3) -> Iterator[Leader]:
        """Starts the job; leaving it without `complete` leaves the attempt as a dead leader does."""
        job = self.store.start(video_id, group="tiny-1")
        video = LiveVideo(self.folder / "live" / job.id / str(job.attempt), self.videos.location(job.id, job.attempt))
        video.open()
        yield Leader(self, job, video, num_blocks)

    def completed(self, content: bytes = b"0123456789" * 100, **fields: Any) -> str:
        """Returns a video that is whole."""
        video_id = self.create(**fields)
        with self.leading(video_id) as leader:
            leader.append(content[:100])
            leader.append(content[100:])
            leader.complete(inference_time_s=1.25, peak_memory_mb=321.0)
        return video_id

    def stored_files(self) -> list[str]:
        return sorted(path.name for folder in ("files", "inline") for path in (self.folder / folder).glob("*"))


@dataclass
class Port:
    """One uvicorn for all tests; each puts its own application behind it."""

    app: Any = None
    number: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@pytest.fixture(scope="session")
def port() -> Iterator[Port]:
    port = Port()
    listener = socket.create_server(("127.0.0.1", 0))
    port.number = listener.getsockname()[1]
    runner = uvicorn.Server(uvicorn.Config(port, log_config=None, lifespan="off", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield port
    runner.should_exit = True
    thread.join(ANSWER_S)
    listener.close()


@contextlib.contextmanager
def served(folder: Path, port: Port, **settings: Any) -> Iterator[Server]:
    pools = (PoolConfig(name="tiny", model="live-avatar-tiny"), PoolConfig(name="full", checkpoint="/weights"))
    server = Server(folder, ServiceConfig(data_dir=folder, allow_anonymous=True, pools=pools, **settings))
    port.app = server.app
    with new_client(f"http://127.0.0.1:{port.number}") as server.client:
        yield server
    server.store.close()


Serve = Callable[..., contextlib.AbstractContextManager[Server]]


@pytest.fixture
def serve(tmp_path: Path, port: Port) -> Serve:
    """Starts an API with settings of its own."""
    return partial(served, tmp_path, port)


@pytest.fixture
def server(serve: Serve) -> Iterator[Server]:
    with serve() as running:
        yield running


@pytest.fixture
def spooled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Sees to it that every temporary file is closed, and with that gone, whatever became of its request."""
    made: list[Any] = []

    def make(**settings: Any) -> Any:
        made.append(SpooledTemporaryFile(**settings))  # noqa: SIM115  (that is what is to be seen)
        return made[-1]

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", make)
    yield made
    until(lambda: all(file.closed for file in made))


def until(is_so: Callable[[], bool]) -> None:
    """Waits for something that another thread does."""
    deadline = time.monotonic() + ANSWER_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.002)
