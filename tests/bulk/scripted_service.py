"""A service over HTTP that says what a test wants."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CREATE, LOOK, CANCEL, FORGET = (
    "POST /v1/videos",
    "GET /v1/videos/v1",
    "POST /v1/videos/v1/cancel",
    "DELETE /v1/videos/v1",
)
CONTENT = f"{LOOK}/content"


@dataclass(frozen=True)
class Answer:
    """What the service says; `is_cut`: the connection ends in the middle of it."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    is_cut: bool = False


class Service(ThreadingHTTPServer):
    """Gives scripted answers by method and path; the last one of each stays."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        self.requests: list[tuple[str, str | None, bytes]] = []
        self.on_request: Callable[[str], None] = lambda _: None
        self.url = f"http://127.0.0.1:{self.server_port}"

    def asked(self, what: str) -> int:
        return sum(asked == what for asked, _, _ in self.requests)

    def keys(self) -> list[str | None]:
        return [key for asked, key, _ in self.requests if asked == CREATE]


class Handler(BaseHTTPRequestHandler):
    server: Service

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = f"{self.command} {self.path}"
        self.server.requests.append((asked, self.headers.get("Idempotency-Key"), body))
        self.server.on_request(asked)
        script = self.server.answers[asked]
        answer = script.pop(0) if len(script) > 1 else script[0]
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if answer.is_cut else content)

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Tests read `requests`."""


@contextmanager
def served(port: int = 0) -> Iterator[Service]:
    """Runs a service."""
    running = Service(port)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def a_video(status: str, *, progress: int = 0, error: Any = None) -> Answer:
    return Answer({"id": "v1", "status": status, "progress": progress, "error": error})


def refusal(status: int, code: str, message: str = "no", **headers: str) -> Answer:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": {"code": code, "message": message}}, status=status, headers=told)
