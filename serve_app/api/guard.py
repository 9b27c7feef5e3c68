"""What every request passes first: an id, the names that the API may be called by, and a last net for errors."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import ApiError, answer
from serve_app.api.flow_proxy import STALL_S
from serve_app.api.live import BrokenStreamError
from serve_app.errors import AvatarError, shown

log = logging.getLogger(__name__)

PROBES = ("/livez", "/readyz")
"""Open to whoever reaches the port: an orchestrator calls them by address."""
ANY_HOST = "*"
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Guard:
    """An ASGI middleware, outside of everything else.

    A web page of another site can let its visitor's browser send requests to 127.0.0.1, and with a name that it lets
    point there even read the answers. So only known names are answered, and pages of other names not at all.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: Collection[str], names_answers: bool) -> None:
        """`names_answers`: the answer tells its X-Request-Id; False where a proxy in front tells it."""
        self._app = app
        self._names_answers = names_answers
        self._hosts = frozenset(_host_of(f"//{host}") or host for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        has_begun = False

        async def send_marked(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                if self._names_answers:
                    headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            try:
                async with asyncio.timeout(STALL_S):
                    await send(message)
            except TimeoutError as error:
                raise BrokenStreamError(f"the client read nothing for {STALL_S:g} s") from error

        try:
            self._check(scope)
            await self._app(scope, receive, send_marked)
        except BrokenStreamError as error:
            log.warning("stream cut", extra={"request": request_id, "reason": str(error)})
        except Exception as error:
            if not isinstance(error, AvatarError):
                log.exception("request failed", extra={"request": request_id, "path": scope["path"]})
            if not has_begun:
                known = error if isinstance(error, AvatarError) else _unexpected()
                await answer(known)(scope, receive, send_marked)
        # An answer that was begun and is not complete makes the server close the connection: the client sees it.

    def _check(self, scope: Scope) -> None:
        """Raises ApiError for a name that is not ours, and for a web page of another site."""
        if scope["path"] in PROBES:
            return
        headers = Headers(scope=scope)
        host = _host_of(f"//{headers.get('host', '')}")
        if ANY_HOST not in self._hosts and host not in self._hosts:
            raise ApiError(
                f"this service is not called {shown(headers.get('host', ''))}",
                code="forbidden",
                remedy="use its own name, or let the operator add this one to allowed_hosts",
                param="Host",
            )
        origin = headers.get("origin")
        if origin is not None and (host is None or _host_of(origin) != host):
            raise _foreign(f"a page of {shown(origin)}", "Origin")
        is_link = headers.get("sec-fetch-mode") == "navigate" and scope["method"] in ("GET", "HEAD")
        if headers.get("sec-fetch-site") == "cross-site" and not is_link:
            raise _foreign("a page of another site", "Sec-Fetch-Site")


def _foreign(whose: str, param: str) -> ApiError:
    return ApiError(
        f"{whose} may not use this service",
        code="forbidden",
        remedy="call it from a program, or through a page of the same host",
        param=param,
    )


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _request_id(headers: Headers) -> str:
    """Returns the client's own id, if it is one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"


def _unexpected() -> AvatarError:
    return AvatarError("the service failed", remedy="see its log")
