"""Answers as long as videos, which go no further ahead of their client than a little."""

from __future__ import annotations

import asyncio

from fastapi.responses import StreamingResponse
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from serve_app.api.flow_proxy import FLOW, STALL_S, TAKEN
from serve_app.api.live import BrokenStreamError

WINDOW_BYTES = 4 * 2**20
"""So much may be on its way: more than what a fast client takes while the word of it travels."""


class FlowingResponse(StreamingResponse):
    """Streams as fast as its client reads, also behind a proxy that would take all at once, if that tells (FLOW)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if FLOW not in Headers(scope=scope):
            await super().__call__(scope, receive, send)
            return
        self.headers[FLOW] = "1"
        window = _Window(send)
        streaming = asyncio.create_task(self.stream_response(window.send))
        listening = asyncio.create_task(window.listen(receive))
        try:
            done, _ = await asyncio.wait({streaming, listening}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            streaming.cancel()
            listening.cancel()


class _Window:
    """What of an answer is on its way."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._sent_bytes = self._taken_bytes = 0
        self._moved = asyncio.Event()

    async def send(self, message: Message) -> None:
        """Sends a message when there is room; raises BrokenStreamError when there is none for too long."""
        while self._sent_bytes - self._taken_bytes >= WINDOW_BYTES:
            self._moved.clear()
            try:
                async with asyncio.timeout(STALL_S):
                    await self._moved.wait()
            except TimeoutError as error:
                raise BrokenStreamError(f"the client took nothing for {STALL_S:g} s") from error
        self._sent_bytes += len(message.get("body", b""))
        await self._send(message)

    async def listen(self, receive: Receive) -> None:
        """Makes room as the client takes; ends when it leaves."""
        while (message := await receive())["type"] != "http.disconnect":
            if message["type"] == TAKEN:
                self._taken_bytes = message["num_bytes"]
                self._moved.set()
