"""Bodies that are too large, too slow, too many or break off."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from serve_app.api import bodies
from tests.api.conftest import ANSWER_S, Serve, Server, until
from tests.api.test_bodies import FORM, WHOLE_FORM, form, part, send

pytestmark = pytest.mark.usefixtures("spooled")


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x-boundary", "application/json"])
def test_compressed_bodies_are_refused(server: Server, kind: str) -> None:
    headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
    error = server.error(send(server, gzip.compress(form(*WHOLE_FORM)), headers), 415, "unsupported_media")
    assert error["param"] == "Content-Encoding"
    assert send(server, form(*WHOLE_FORM), {**FORM, "Content-Encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("trickles", [False, True])
def test_a_body_that_stands_still_or_trickles_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, trickles: bool
) -> None:
    monkeypatch.setattr(bodies, "PATIENCE_S", 0.5)
    monkeypatch.setattr(bodies, "LEAST_BYTES_PER_S", 10**9 if trickles else 1)
    room, at = server.app.state.context.room, urlsplit(server.url)
    kind = f"Content-Type: {FORM['Content-Type']}"
    head = ("POST /v1/videos HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 1000000", kind)
    with socket.create_connection((at.hostname, at.port), timeout=ANSWER_S) as connection:
        connection.sendall("\r\n".join((*head, "", "")).encode() + form(*WHOLE_FORM)[:1000])
        until(lambda: room.now_bytes > 0)
        began = time.monotonic()
        while trickles and room.now_bytes > 0 and time.monotonic() < began + ANSWER_S:
            connection.sendall(b"x")
            time.sleep(0.05)
        answer = b""
        while chunk := connection.recv(65_536):  # until it is closed
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "body_too_slow"' in answer
    assert b"connection: close" in answer.lower()
    assert time.monotonic() - began < ANSWER_S / 2
    assert room.now_bytes == 0


def test_a_body_may_come_slowly_but_steadily(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PATIENCE_S", 1.0)
    monkeypatch.setattr(bodies, "LEAST_BYTES_PER_S", 5_000)
    whole = form(*WHOLE_FORM)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(whole), 2_000):
            time.sleep(0.1)
            yield whole[start : start + 2_000]

    assert server.client.post("/v1/videos", content=pieces(), headers=FORM).status_code == 200


def test_bodies_of_many_clients_together_are_limited(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(api={"max_body_bytes": 50_000}) as server:
        room = server.app.state.context.room
        assert room.most_bytes == 8 * 50_000
        assert server.post().status_code == 200
        monkeypatch.setattr(room, "most_bytes", 30_000)
        refused = server.post()
        server.error(refused, 503, "unavailable")
        assert refused.headers["Retry-After"] in ("1", "2")
        server.error(server.client.post("/v1/videos", json={"prompt": "x" * 5_000}), 503, "unavailable")
        assert server.client.post("/v1/videos", json={"prompt": "x" * 1_000}).status_code == 400
        assert room.now_bytes == 0


def test_a_full_disk_for_temporary_files_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/secret")

    monkeypatch.setattr("starlette.datastructures.UploadFile.write", full)
    error = server.error(server.post(), 503, "output_not_writable")
    assert "No space left on device" in error["message"]
    assert "secret" not in error["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(serve: Serve) -> None:
    with serve(api={"max_body_bytes": 50_000, "max_json_bytes": 1_000}) as server:
        large = part("audio", b"x" * 60_000, "v.wav")
        assert server.error(send(server, form(large)), 413, "body_too_large")["details"] == {"max_bytes": 50_000}
        assert server.client.post("/v1/files", files={"file": b"x" * 60_000}).status_code == 413
        server.error(send(server, b"x" * 1_001, {"Content-Type": "application/json"}), 413, "body_too_large")


def test_a_body_of_unknown_length_is_counted_while_it_comes(serve: Serve) -> None:
    def pieces(whole: bytes) -> Any:
        return (whole[start : start + 10_000] for start in range(0, len(whole), 10_000))

    with serve(api={"max_body_bytes": 50_000, "max_json_bytes": 20_000}) as server:
        in_file = server.client.post(
            "/v1/videos", content=pieces(form(part("audio", b"x" * 60_000, "v.wav"))), headers=FORM
        )
        server.error(in_file, 413, "body_too_large")
        as_json = {"Content-Type": "application/json"}
        server.error(
            server.client.post("/v1/videos", content=pieces(b" " * 30_000), headers=as_json), 413, "body_too_large"
        )


def test_fields_of_a_form_are_limited_together_as_they_are_in_memory(serve: Serve) -> None:
    with serve(api={"max_json_bytes": 10_000}) as server:
        content = form(*(part(f"metadata[{n}]", b"x" * 600) for n in range(20)))
        assert server.error(send(server, content), 413, "body_too_large")["details"] == {"max_bytes": 10_000}


def test_a_body_that_breaks_off_is_forgotten(server: Server, spooled: list[Any]) -> None:
    at = urlsplit(server.url)
    whole = form(*WHOLE_FORM)
    with socket.create_connection((at.hostname, at.port)) as connection:
        head = ("POST /v1/videos HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(whole)}")
        kind = f"Content-Type: {FORM['Content-Type']}"
        connection.sendall("\r\n".join((*head, kind, "", "")).encode() + whole[:1000])
        until(lambda: len(spooled) > 0)
        assert not spooled[0].closed
    until(lambda: server.app.state.context.room.now_bytes == 0)
    assert server.stored_files() == []
