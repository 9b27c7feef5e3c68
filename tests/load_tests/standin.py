"""A stand-in for the service's door: takes so many videos at once, makes grey ones of them, refuses the rest."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serve_app.media.video_writer import VideoWriter
from serve_app.planning.geometry import FRAMES_PER_BLOCK, Size
from serve_app.schemas.config import VideoEncoding

BLOCKS_PER_CLIP = 4


@dataclass
class StandIn:
    """On its clock every event takes a second. `ending`: of every video; `promise_s`: of every quote.

    Events break off after `break_after` of them, once; the first `not_ready` readers come too early.
    """

    capacity: int = 1000
    block_s: float = 0.0
    promise_s: float | None = 60.0
    ending: str = "completed"
    break_after: int | None = None
    not_ready: int = 0
    forms: list[dict[str, str]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    resumed_behind: list[str] = field(default_factory=list)
    num_running: int = 0
    num_told: int = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/files", self._upload, methods=["POST"]),
                Route("/v1/videos", self._create, methods=["POST"]),
                Route("/v1/videos/{video_id}/events", self._events),
                Route("/v1/videos/{video_id}/content", self._content),
            ]
        )

    async def _upload(self, request: Request) -> Response:
        form = await request.form()
        self.uploads.append(str(getattr(form["file"], "filename", "")))
        return JSONResponse({"id": f"file_{len(self.uploads)}", "object": "file"})

    async def _create(self, request: Request) -> Response:
        is_json = request.headers["Content-Type"] == "application/json"
        fields = await request.json() if is_json else await request.form()
        self.forms.append({name: str(value) for name, value in fields.items()})
        if self.num_running >= self.capacity:
            error = {"code": "no_capacity", "message": "later", "type": "unavailable"}
            return JSONResponse({"error": error}, status_code=503, headers={"Retry-After": "7"})
        self.num_running += 1
        quote = {"promise_in_s": self.promise_s}
        return JSONResponse({"id": f"video_{len(self.forms) - 1}", "object": "video", "quote": quote})

    def _num_blocks(self, request: Request) -> int:
        form = self.forms[int(request.path_params["video_id"].removeprefix("video_"))]
        return int(form["num_clip"]) * BLOCKS_PER_CLIP

    async def _events(self, request: Request) -> Response:
        behind = request.headers.get("Last-Event-ID", "0")
        self.resumed_behind.append(behind)
        return StreamingResponse(self._told(int(behind), self._num_blocks(request)), media_type="text/event-stream")

    async def _told(self, behind: int, num_blocks: int) -> AsyncIterator[str]:
        told: dict[str, object] = {"error": {"code": "over_budget", "message": "too much"}}
        names = ["queued", "started", *["block"] * num_blocks, self.ending]
        for number, name in list(enumerate(names, 1))[behind:]:
            if number - 1 == self.break_after:
                self.break_after = None
                return
            await asyncio.sleep(self.block_s if name == "block" else 0)
            told["at"] = self.num_told = self.num_told + 1
            yield f": beat\n\nid: {number}\nevent: {name}\ndata: {json.dumps(told)}\n\n"
        self.num_running -= 1

    async def _content(self, request: Request) -> Response:
        if self.not_ready:
            self.not_ready -= 1
            return JSONResponse({"error": {"code": "not_ready"}}, status_code=409)
        return StreamingResponse(self._pieces(self._num_blocks(request)), media_type="video/mp4")

    async def _pieces(self, num_blocks: int) -> AsyncIterator[bytes]:
        init, *blocks = grey_video(num_blocks)
        yield init
        for block in blocks:
            await asyncio.sleep(self.block_s)
            yield block[: len(block) // 2]
            yield block[len(block) // 2 :]


@lru_cache
def grey_video(num_blocks: int) -> tuple[bytes, ...]:
    """Returns the start of a file and its fragments."""
    size, frames = Size(64, 64), np.full((FRAMES_PER_BLOCK, 64, 64, 3), 128, np.uint8)
    num_frames = num_blocks * FRAMES_PER_BLOCK
    with VideoWriter(size, sound=Hum(), num_frames=num_frames, encoding=VideoEncoding()) as writer:
        return (writer.init_segment(), *(writer.write_block(frames) for _ in range(num_blocks)))


@dataclass(frozen=True)
class Hum:
    """A quiet sound."""

    sample_rate: int = 16_000
    channels: int = 1

    def read(self, num_samples: int) -> np.ndarray:
        return np.full((num_samples, 1), 0.01, np.float32)


@contextmanager
def served(standin: StandIn) -> Iterator[str]:
    """Serves on a free port of this machine; yields the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(standin.app(), log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, args=([listening],), name="stand-in")
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
