"""A video while it is made: its bytes as they come, to any number of readers, each in its own time.

The video is the concatenation of its fragments, so that a reader's place in it is a byte offset, whatever happens to
the attempt that makes it: another attempt makes the same bytes, which is checked by digest before a reader goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import BinaryIO

from serve_app.api.context import Context
from serve_app.api.errors import ApiError
from serve_app.errors import AvatarError
from serve_app.jobs.job import Job, JobState

LOOK_EVERY_S = 5.0
"""Readers wait for events; a missed one costs so long."""
_CHUNK_BYTES = 1 << 20


class BrokenStreamError(Exception):
    """A stream cannot go on; its connection is cut, so that the client sees that something is missing."""


class LiveReader:
    """One reader of one video; one fragment at a time is in memory."""

    def __init__(self, job: Job, api: Context) -> None:
        self._id, self._attempt = job.id, job.attempt
        self._api = api
        self._next = 0
        self._digest = hashlib.sha256()
        self._sent = 0
        self._seen_event = 0

    async def wait_for_start(self, *, timeout_s: float) -> Job:
        """Waits until there are bytes of the video, or it has ended; raises ApiError when the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            job = await self._api.service.job(self._id)
            self._attempt = job.attempt
            if job.state.is_final or await self._fragment(0) is not None:
                return job
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise _not_ready(job)
            await self._wait(min(left_s, LOOK_EVERY_S))

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the whole video; raises BrokenStreamError when it comes to no end, or to another one than it began."""
        try:
            while True:
                fragment = await self._fragment(self._next)
                if fragment is not None:
                    self._next += 1
                    yield self._counted(fragment)
                    continue
                job = await self._api.service.job(self._id)
                if job.state is JobState.COMPLETED:
                    break
                if job.state.is_final:
                    raise BrokenStreamError(f"{self._id} has {job.state} after {self._sent} bytes")
                if job.attempt != self._attempt:
                    rest = await self._change_to(job.attempt)
                    if rest:
                        yield self._counted(rest)
                    continue
                await self._wait(LOOK_EVERY_S)
            async for chunk in self._rest_of_file(job):
                yield self._counted(chunk)
        except AvatarError as error:  # deleted meanwhile, or the store is away
            raise BrokenStreamError(f"{self._id} after {self._sent} bytes: {error}") from error

    async def _change_to(self, attempt: int) -> bytes:
        """Goes over to another attempt as soon as it has made what was sent; returns the bytes of it beyond that."""
        check, num_bytes, number, rest = hashlib.sha256(), 0, 0, b""
        while num_bytes < self._sent:
            fragment = await self._fragment(number, attempt=attempt)
            if fragment is None:
                job = await self._api.service.job(self._id)
                if job.attempt != attempt or job.state.is_final:
                    return b""  # the caller looks again, from where it was
                await self._wait(LOOK_EVERY_S)
                continue
            same, rest = fragment[: self._sent - num_bytes], fragment[self._sent - num_bytes :]
            check.update(same)
            num_bytes += len(same)
            number += 1
        self._check_is_same(check.digest())
        self._attempt, self._next = attempt, number
        return rest

    async def _rest_of_file(self, job: Job) -> AsyncIterator[bytes]:
        file = await asyncio.to_thread(self._api.videos.open, self._id, attempt=job.attempt)
        if file is None:
            raise BrokenStreamError(f"{self._id} was removed after {self._sent} bytes")
        with file:
            if job.attempt == self._attempt:
                await asyncio.to_thread(file.seek, self._sent)
            else:
                self._check_is_same(await asyncio.to_thread(_prefix_digest, file, self._sent))
            while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                yield chunk

    def _check_is_same(self, digest: bytes) -> None:
        if digest != self._digest.digest():
            raise BrokenStreamError(f"another attempt of {self._id} made other bytes than the {self._sent} sent")

    def _counted(self, chunk: bytes) -> bytes:
        self._digest.update(chunk)
        self._sent += len(chunk)
        return chunk

    async def _fragment(self, number: int, *, attempt: int | None = None) -> bytes | None:
        read = self._api.videos.fragment
        return await asyncio.to_thread(read, self._id, attempt=attempt or self._attempt, number=number)

    async def _wait(self, timeout_s: float) -> None:
        """Waits for news; what was already there when somebody last looked at the fragments may be among them."""
        events = await self._api.service.events(self._id, after=self._seen_event)
        if events:
            self._seen_event = events[-1].number
            return
        await self._api.service.wait_for_event(self._id, after=self._seen_event, timeout_s=timeout_s)


def _not_ready(job: Job) -> ApiError:
    return ApiError(
        f"nothing of video {job.id} is made yet ({job.state})",
        code="not_ready",
        remedy="ask again later; its events tell when it starts",
        param="id",
        retry_after_s=LOOK_EVERY_S,
    )


def _prefix_digest(file: BinaryIO, num_bytes: int) -> bytes:
    digest = hashlib.sha256()
    while num_bytes > 0 and (chunk := file.read(min(_CHUNK_BYTES, num_bytes))):
        digest.update(chunk)
        num_bytes -= len(chunk)
    return digest.digest()
