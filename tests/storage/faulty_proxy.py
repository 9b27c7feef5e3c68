"""A proxy that does to requests what networks and busy servers do, when a test says so."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

WAIT_S = 30.0
_OWN_HEADERS = {"connection", "expect", "transfer-encoding", "date", "server"}


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose path and query contain `part`.

    status: the server answers `status`; reset: the connection ends before the server hears of the request; lost: the
    server does what it is asked, and the connection ends; cut: it is closed in the middle of the answer's body; silent:
    nothing comes behind the middle of the body; held: the request waits until `released`;
    whole: no range is asked for.
    """

    kind: Literal["status", "reset", "lost", "cut", "silent", "held", "whole"]
    method: str
    part: str = ""
    times: int = 1
    status: int = 503

    def __post_init__(self) -> None:
        self.met = threading.Event()
        self.released = threading.Event()


class FaultyProxy(ThreadingHTTPServer):
    """Forwards to one server; `faults` are tried in their order, `requests` is what came, with the range."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self.ended = threading.Event()
        self.renew()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def renew(self) -> None:
        """Forgets what was, for another test; whoever is silent for the last one ends."""
        self.ended.set()
        self.ended = threading.Event()
        self.faults: list[Fault] = []
        self.requests: list[str] = []

    def take(self, method: str, path: str, span: str) -> Fault | None:
        with self._lock:
            self.requests.append(f"{method} {path} {span}".strip())
            for fault in self.faults:
                if fault.times and fault.method == method and fault.part in path:
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are no news."""


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Runs a proxy in front of a server."""
    with FaultyProxy(upstream) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.renew()
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Tests read `requests`."""

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.take(self.command, self.path, self.headers.get("Range", ""))
        if fault is None:
            self._forward(body, "")
            return
        fault.met.set()
        if fault.kind == "held":
            fault.released.wait(WAIT_S)
        if fault.kind == "status":
            self._answer(fault.status, [], b"<Error><Code>Injected</Code></Error>")
        elif fault.kind == "reset":
            self._reset()
        else:
            self._forward(body, fault.kind)

    def _forward(self, body: bytes, kind: str) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=WAIT_S)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN_HEADERS}
        if kind == "whole":
            del headers["Range"]
        with suppress(ConnectionError):  # the server may refuse a request before all of it has come
            upstream.request(self.command, self.path, body=body, headers=headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OWN_HEADERS]
        if kind == "lost":
            self._reset()
        elif kind in ("cut", "silent"):
            self._answer(answer.status, kept, content, stop=len(content) // 2)
            if kind == "silent":
                self.server.ended.wait(WAIT_S)
            self.close_connection = True
        else:
            self._answer(answer.status, kept, content)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, stop: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:stop])

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
