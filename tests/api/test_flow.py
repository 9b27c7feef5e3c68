"""Behind a proxy that takes whatever it is given, as Serve's does, the API goes no further ahead than a window."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from serve_app.api import flow, flow_proxy
from serve_app.api.flow import WINDOW_BYTES
from serve_app.api.flow_proxy import FLOW, FlowTeller
from serve_app.api.ranges import CHUNK_BYTES
from tests.api.conftest import VOICE, Port, Serve, Server, new_client, until, voice
from tests.api.test_uploads import upload

LARGE = b"0123456789abcdef" * (40 * 2**16)
STALL_S = 0.3


@dataclass
class GreedyProxy:
    """Takes all that the application sends, however little the client reads; `held_bytes` is what it then has."""

    app: Any
    held_bytes: int = 0
    most_held_bytes: int = 0
    requests: list[dict[str, str]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests.append({name.decode(): value.decode() for name, value in scope["headers"]})
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def take(message: Any) -> None:
            self.held_bytes += len(message.get("body", b""))
            self.most_held_bytes = max(self.most_held_bytes, self.held_bytes)
            queue.put_nowait(message)

        running = asyncio.create_task(self.app(scope, receive, take))
        running.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (message := await queue.get()) is not None:
                await send(message)
                self.held_bytes -= len(message.get("body", b""))
        finally:
            running.cancel()


@pytest.fixture
def served(serve: Serve) -> Iterator[Server]:
    with serve(api={"max_streams": 1}) as server:
        yield server


@pytest.fixture
def proxy(served: Server, port: Port) -> GreedyProxy:
    """Stands between the port and the API, and tells it what clients take."""
    proxy = GreedyProxy(served.app)
    port.app = FlowTeller(proxy)
    return proxy


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (flow, flow_proxy):
        monkeypatch.setattr(module, "STALL_S", STALL_S)


def num_streams(server: Server) -> int:
    return int(server.app.state.context.streams.now)


def test_a_whole_video_waits_in_the_file_for_its_reader(served: Server, proxy: GreedyProxy) -> None:
    video_id = served.completed(LARGE)
    with new_client(served.url) as client, client.stream("GET", f"/v1/videos/{video_id}/content") as answer:
        chunks = answer.iter_raw()
        head = next(chunks)
        until(lambda: proxy.held_bytes >= WINDOW_BYTES - CHUNK_BYTES)
        assert num_streams(served) == 1
        assert head + b"".join(chunks) == LARGE
    assert proxy.most_held_bytes <= WINDOW_BYTES + CHUNK_BYTES


def test_without_a_word_of_what_is_taken_the_proxy_gets_it_all(served: Server, port: Port) -> None:
    proxy = port.app = GreedyProxy(served.app)
    video_id = served.completed(LARGE)
    with new_client(served.url) as client, client.stream("GET", f"/v1/videos/{video_id}/content") as answer:
        until(lambda: num_streams(served) == 0)
        assert proxy.most_held_bytes > len(LARGE) / 2
        assert answer.read() == LARGE


def test_a_video_that_is_made_waits_in_its_fragments_for_its_reader(served: Server, proxy: GreedyProxy) -> None:
    video_id, fragment = served.create(), b"x" * 2**20
    with served.leading(video_id, num_blocks=40) as leader:
        for _ in range(40):
            leader.append(fragment)
        with new_client(served.url) as client, client.stream("GET", f"/v1/videos/{video_id}/content") as answer:
            chunks = answer.iter_raw()
            num_bytes = len(next(chunks))
            until(lambda: proxy.held_bytes >= WINDOW_BYTES - len(fragment))
            leader.complete()
            assert num_bytes + sum(map(len, chunks)) == 40 * len(fragment)
    assert proxy.most_held_bytes <= WINDOW_BYTES + len(fragment)


@pytest.mark.usefixtures("_impatient")
def test_a_reader_that_stops_reading_is_cut_off_and_its_place_is_free(served: Server, proxy: GreedyProxy) -> None:
    video_id = served.completed(LARGE)
    with new_client(served.url) as client, client.stream("GET", f"/v1/videos/{video_id}/content") as answer:
        chunks = answer.iter_raw()
        next(chunks)
        until(lambda: num_streams(served) == 0)
        with pytest.raises(httpx2.RemoteProtocolError):
            list(chunks)
    assert proxy.most_held_bytes <= WINDOW_BYTES + CHUNK_BYTES


@pytest.mark.usefixtures("proxy")
def test_a_reader_that_leaves_gives_its_place_back(served: Server) -> None:
    video_id = served.completed(LARGE)
    with new_client(served.url) as client, client.stream("GET", f"/v1/videos/{video_id}/content") as answer:
        next(answer.iter_raw())
    until(lambda: num_streams(served) == 0)


def test_clients_neither_say_nor_hear_what_proxy_and_api_tell_each_other(served: Server, proxy: GreedyProxy) -> None:
    video_id = served.completed()
    for headers in ({}, {FLOW: "of the client"}):
        answer = served.client.get(f"/v1/videos/{video_id}/content", headers=headers)
        assert (answer.status_code, len(answer.content)) == (200, 1000)
        assert FLOW not in answer.headers
        assert proxy.requests[-1][FLOW] == "1"


def test_an_upload_that_is_read_waits_for_its_reader_who_is_counted(served: Server, proxy: GreedyProxy) -> None:
    long_voice = voice(1000)
    file_id = upload(served, long_voice, "voice.wav")
    with new_client(served.url) as client, client.stream("GET", f"/v1/files/{file_id}/content") as answer:
        until(lambda: proxy.held_bytes >= WINDOW_BYTES - CHUNK_BYTES)
        assert num_streams(served) == 1
        assert answer.read() == long_voice
    until(lambda: num_streams(served) == 0)
    assert proxy.most_held_bytes <= WINDOW_BYTES + CHUNK_BYTES


@pytest.mark.usefixtures("proxy")
def test_bodies_and_short_answers_pass_as_they_are(served: Server) -> None:
    file_id = upload(served, VOICE, "voice.wav")
    assert served.client.get(f"/v1/files/{file_id}/content").content == VOICE
    assert served.client.get(f"/v1/files/{file_id}").json()["bytes"] == len(VOICE)


@pytest.mark.usefixtures("_impatient")
def test_who_pretends_to_be_a_proxy_waits_for_itself_alone(served: Server) -> None:
    video_id = served.completed(LARGE)
    with pytest.raises(httpx2.RemoteProtocolError):
        served.client.get(f"/v1/videos/{video_id}/content", headers={FLOW: "1"})
    until(lambda: num_streams(served) == 0)
    assert served.client.get(f"/v1/videos/{video_id}/content").content == LARGE
