"""Whether a client still waits for its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response

_CLIENT_GONE = 499
"""What logs know such answers by."""

Value = TypeVar("Value")


class ClientGoneError(Exception):
    """Nobody waits any more."""


async def while_present(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """Waits for something as long as the client does, whose body must be read; raises ClientGoneError when it left."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        working.cancel()
        leaving.cancel()


def nobody() -> Response:
    """Returns the answer that nobody reads."""
    return Response(status_code=_CLIENT_GONE)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
