"""What every route has: the service behind it, files and videos, the configuration, and the limits that they share."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request

from serve_app.api.service import VideoService
from serve_app.errors import UnavailableError
from serve_app.schemas.service import ServiceConfig
from serve_app.storage.files import Facts, FileStore, Kind
from serve_app.storage.videos import VideoFiles

MAX_DECODERS = 2
"""Images and sounds that are decoded at once: each may take hundreds of MB."""

MAX_SEEN = 1000
MAX_LARGEST_BODIES = 8
"""So many bodies of the largest size are held at once, or more smaller ones."""

Value = TypeVar("Value")


class SeenFiles:
    """Facts about files that were decoded lately, by digest: who is refused sends the same files again."""

    def __init__(self) -> None:
        self._facts: OrderedDict[tuple[str, Kind], Facts] = OrderedDict()
        self._lock = threading.Lock()

    def facts(self, sha256: str, kind: Kind, decode: Callable[[], Facts]) -> Facts:
        """Returns what is in a file, from memory if possible; raises what `decode` raises."""
        with self._lock:
            facts = self._facts.get((sha256, kind))
        facts = facts or decode()
        with self._lock:
            self._facts[sha256, kind] = facts
            self._facts.move_to_end((sha256, kind))
            if len(self._facts) > MAX_SEEN:
                self._facts.popitem(last=False)
        return facts


@dataclass
class Streams:
    """Counts what holds a connection for long: live readers, event streams, waiting requests."""

    most: int
    now: int = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts one in; raises UnavailableError when there are too many."""
        if self.now >= self.most:
            raise UnavailableError(
                f"{self.now} streams are open, which is the limit", remedy="close some, or try again in a second"
            )
        self.now += 1
        try:
            yield
        finally:
            self.now -= 1


@dataclass
class Room:
    """Counts the bytes of all bodies that are held, each until its request is decided."""

    most_bytes: int
    now_bytes: int = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Yields the part of one request, which it gives back in the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.now_bytes -= share.num_bytes


@dataclass
class Share:
    """What one request has of the room."""

    room: Room
    num_bytes: int = 0

    def take(self, num_bytes: int) -> None:
        """Takes some more; raises UnavailableError when there is no more."""
        if self.room.now_bytes + num_bytes > self.room.most_bytes:
            raise UnavailableError("too many large requests come at once", remedy="send it again in a second")
        self.room.now_bytes += num_bytes
        self.num_bytes += num_bytes


@dataclass
class Context:
    """One per application."""

    service: VideoService
    files: FileStore
    videos: VideoFiles
    config: ServiceConfig
    streams: Streams
    room: Room
    decoders: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(MAX_DECODERS, thread_name_prefix="decoder")
    )
    seen: SeenFiles = field(default_factory=SeenFiles)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def shown(self, message: str) -> str:
        """Returns a message of a leader as clients may read it: where our files are is not theirs to know."""
        return message.replace(str(self.config.data_dir), "...")

    async def decode(self, work: Callable[[], Value]) -> Value:
        """Runs what decodes a client's file on one of the few threads for it."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, work)

    def begin(self, work: Coroutine[Any, Any, Value]) -> asyncio.Task[Value]:
        """Begins something that goes on to its end, also when the client goes away meanwhile."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def to_end(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Waits for something that goes on to its end."""
        return await asyncio.shield(self.begin(work))

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # somebody may have stopped waiting for it


async def _context(request: Request) -> Context:  # a plain function would be sent to a thread
    return cast(Context, request.app.state.context)


Api = Annotated[Context, Depends(_context)]


async def _stream(api: Api) -> AsyncIterator[None]:
    """Holds a place among the streams until the answer is sent."""
    with api.streams.one():
        yield


AsStream = Depends(_stream)
