"""Runs in Serve's HTTP proxies, and tells the API how much of a long answer its client has taken.

A proxy of Serve takes whatever a replica sends and keeps it until the client reads: of a video of a gigabyte all of
it, for each client that reads nothing. So between ASGI's own messages an answer that asks for it is told what its
client took (`flow.FlowingResponse`), and sends no more than a little beyond that.

Serve calls `middlewares` in each proxy whose environment has SETTING = IMPORT_PATH. It imports nothing of ours.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SETTING = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
IMPORT_PATH = "serve_app.api.flow_proxy:middlewares"
FLOW = "x-live-avatar-flow"
"""In a request: the proxy can tell; in an answer: it shall. Neither comes from, or goes to, the client."""
TAKEN = "live_avatar.taken"
"""The type of the message; its `num_bytes` counts from the start of the body."""
STALL_S = 600.0
"""A client that reads nothing for so long has its connection cut: it holds a place among the streams."""

_FLOW_HEADER = FLOW.encode()


def middlewares() -> list[Middleware]:
    """Returns what Serve shall put before the proxy."""
    return [Middleware(FlowTeller)]


class FlowTeller:
    """An ASGI middleware around a proxy of Serve."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name != _FLOW_HEADER]
        client = _Client(receive, send)
        try:
            await self._app({**scope, "headers": [*headers, (_FLOW_HEADER, b"1")]}, client.receive, client.send)
        finally:
            client.leave()


class _Client:
    """A client that is asked and told things as ASGI does it, and counts what it took."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._is_told = False
        self._taken_bytes = 0
        self._taken = asyncio.Event()
        self._receiving: asyncio.Future[Message] | None = None

    async def send(self, message: Message) -> None:
        """Sends a message, as soon as the client has taken nearly all before it."""
        if message["type"] == "http.response.start":
            headers = [(name, value) for name, value in message["headers"] if name != _FLOW_HEADER]
            self._is_told = len(headers) < len(message["headers"])
            message = {**message, "headers": headers}
        if not self._is_told:
            await self._send(message)
            return
        async with asyncio.timeout(STALL_S):
            await self._send(message)
        self._taken_bytes += len(message.get("body", b""))
        self._taken.set()

    async def receive(self) -> Message:
        """Returns the next message of the client, or what it has taken since the last one."""
        receiving = self._receiving = self._receiving or asyncio.ensure_future(self._receive())
        taking = asyncio.create_task(self._taken.wait())
        both: set[asyncio.Future[Any]] = {receiving, taking}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            taking.cancel()
        if receiving.done():
            self._receiving = None
            return receiving.result()
        self._taken.clear()
        return {"type": TAKEN, "num_bytes": self._taken_bytes}

    def leave(self) -> None:
        """Waits for nothing more."""
        if self._receiving is not None:
            self._receiving.cancel()
