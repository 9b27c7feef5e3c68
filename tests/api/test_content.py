"""The bytes of videos: whole, in parts, and while they are made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.api.errors import ApiError
from serve_app.api.ranges import parse_range
from serve_app.jobs.job import JobError
from tests.api.conftest import ANSWER_S, Serve, Server, new_client, until

WHOLE = b"0123456789" * 100


class Reader:
    """Reads a video on a thread of its own: what came, and whether it came to its end."""

    def __init__(self, server: Server, video_id: str) -> None:
        self.content = b""
        self.is_whole = False
        self.answer: Any = None
        self._url, self._path = server.url, f"/v1/videos/{video_id}/content"
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with new_client(self._url) as client, client.stream("GET", self._path) as answer:
            self.answer = answer
            try:
                for chunk in answer.iter_bytes():
                    self.content += chunk
                self.is_whole = True
            except httpx2.RemoteProtocolError:
                pass

    def wait_for(self, content: bytes) -> None:
        until(lambda: self.content == content)

    def join(self) -> tuple[bytes, bool]:
        self._thread.join(ANSWER_S)
        return self.content, self.is_whole


def get(server: Server, video_id: str, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.get(f"/v1/videos/{video_id}/content", headers=named)


def test_a_whole_video_is_answered_with_its_length(server: Server) -> None:
    video_id = server.completed(WHOLE)
    answer = get(server, video_id)
    assert (answer.status_code, answer.content) == (200, WHOLE)
    assert (answer.headers["Content-Type"], answer.headers["Content-Length"]) == ("video/mp4", "1000")
    assert (answer.headers["Accept-Ranges"], answer.headers["X-Content-Type-Options"]) == ("bytes", "nosniff")
    head = server.client.head(f"/v1/videos/{video_id}/content")
    assert (head.status_code, head.headers["Content-Length"], head.headers["ETag"]) == (
        200,
        "1000",
        answer.headers["ETag"],
    )


def test_the_head_of_a_video_that_is_not_whole_tells_no_length(server: Server) -> None:
    head = server.client.head(f"/v1/videos/{server.create()}/content")
    assert (head.status_code, head.headers["Content-Type"]) == (200, "video/mp4")
    assert "Content-Length" not in head.headers


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=990-", 990, 999),
        ("bytes=990-5000", 990, 999),
        ("bytes=-50", 950, 999),
        ("bytes=-5000", 0, 999),
    ],
)
def test_a_part_is_answered_by_range(server: Server, asked: str, first: int, last: int) -> None:
    answer = get(server, server.completed(WHOLE), Range=asked)
    assert (answer.status_code, answer.content) == (206, WHOLE[first : last + 1])
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/1000"
    assert answer.headers["Content-Length"] == str(last - first + 1)


@pytest.mark.parametrize("asked", ["bytes=0-9", "bytes=1000-"])
def test_a_range_has_no_meaning_for_the_head(server: Server, asked: str) -> None:
    answer = server.client.head(f"/v1/videos/{server.completed(WHOLE)}/content", headers={"Range": asked})
    assert (answer.status_code, answer.headers["Content-Length"]) == (200, "1000")


@pytest.mark.parametrize("asked", ["bytes=1000-", "bytes=1000-2000", "bytes=-0"])
def test_a_range_outside_of_the_file_is_refused(server: Server, asked: str) -> None:
    answer = get(server, server.completed(WHOLE), Range=asked)
    error = server.error(answer, 416, "range_not_satisfiable")
    assert error["details"] == {"num_bytes": 1000}
    assert answer.headers["Content-Range"] == "bytes */1000"


@pytest.mark.parametrize(
    "asked", ["bytes=5-3", "bytes=a-b", "lines=1-2", "bytes=-", "bytes=0-1,5-6", "bytes=" + "9" * 99]
)
def test_a_range_that_is_none_is_answered_with_the_whole(server: Server, asked: str) -> None:
    answer = get(server, server.completed(WHOLE), Range=asked)
    assert (answer.status_code, answer.content) == (200, WHOLE)


@given(written=st.text(max_size=30) | st.from_regex(r"bytes=\d{0,20}-\d{0,20}"), num_bytes=st.integers(0, 10**12))
@settings(max_examples=100, deadline=None)
def test_any_range_is_within_the_file_or_refused(written: str, num_bytes: int) -> None:
    try:
        part = parse_range(written, num_bytes)
    except ApiError as error:
        assert error.code == "range_not_satisfiable"  # noqa: PT017
    else:
        assert part is None or (0 <= part.start < part.stop <= num_bytes)


def test_a_client_that_has_the_video_gets_no_second_copy(server: Server) -> None:
    video_id = server.completed(WHOLE)
    etag = get(server, video_id).headers["ETag"]
    for known in (etag, f'W/{etag}, "other"', "*"):
        answer = get(server, video_id, If_None_Match=known)
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
    assert get(server, video_id, If_None_Match='"other"').status_code == 200


def test_a_range_of_another_version_is_answered_with_the_whole(server: Server) -> None:
    video_id = server.completed(WHOLE)
    etag = get(server, video_id).headers["ETag"]
    assert get(server, video_id, Range="bytes=0-9", If_Range=etag).status_code == 206
    assert get(server, video_id, Range="bytes=0-9", If_Range='"other"').status_code == 200


@pytest.mark.parametrize("variant", ["thumbnail", "spritesheet", ""])
def test_only_the_video_itself_is_there(server: Server, variant: str) -> None:
    answer = server.client.get(f"/v1/videos/{server.completed()}/content", params={"variant": variant})
    assert server.error(answer, 400, "invalid_request")["param"] == "variant"


def test_a_video_that_came_to_nothing_has_no_content(server: Server) -> None:
    failed, cancelled = server.create(), server.create()
    server.store.fail(failed, error=JobError("render_failed", f"{server.folder}/x broke"))
    server.store.request_cancel(cancelled)
    assert ": .../x broke;" in server.error(get(server, failed), 409, "no_content")["message"]
    server.error(get(server, cancelled), 409, "no_content")


def test_readers_early_and_late_get_the_same_video_while_it_is_made(server: Server) -> None:
    video_id = server.create()
    early = Reader(server, video_id)
    until(lambda: server.service.waiting > 0)  # it waits with the queue
    with server.leading(video_id) as leader:
        leader.append(b"head")
        early.wait_for(b"head")
        assert "Content-Length" not in early.answer.headers
        leader.append(b"-one")
        early.wait_for(b"head-one")
        late = Reader(server, video_id)
        late.wait_for(b"head-one")
        leader.append(b"-two")
        leader.append(b"-end")
        leader.complete()
    assert early.join() == late.join() == (b"head-one-two-end", True)
    assert get(server, video_id).content == b"head-one-two-end"


def test_a_reader_that_fell_behind_goes_on_in_the_whole_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    video_id = server.create()
    with server.leading(video_id) as leader:
        leader.append(b"head")
        reader = Reader(server, video_id)
        reader.wait_for(b"head")
        gate = threading.Event()
        read = server.videos.fragment

        def read_later(*arguments: Any, **named: Any) -> bytes | None:
            gate.wait(ANSWER_S)
            return read(*arguments, **named)

        monkeypatch.setattr(server.videos, "fragment", read_later)
        leader.append(b"-one")
        leader.append(b"-two")
        leader.complete()  # its fragments are gone
        gate.set()
    assert reader.join() == (b"head-one-two", True)


@pytest.fixture
def cut(server: Server) -> Iterator[tuple[Reader, str]]:
    """A reader of 9 bytes whose group was lost; the job waits for its second attempt."""
    video_id = server.create()
    with server.leading(video_id) as leader:
        leader.append(b"head")
        leader.append(b"-one-")
        reader = Reader(server, video_id)
        reader.wait_for(b"head-one-")
        server.videos.discard(video_id, attempt=1)
        server.store.lose_group(video_id, attempt=1, cause=JobError("group_lost", "gone"), has_brought_down=False)
    yield reader, video_id
    reader.join()


def test_a_reader_goes_on_where_a_second_attempt_makes_the_same_bytes(server: Server, cut: tuple[Reader, str]) -> None:
    reader, video_id = cut
    with server.leading(video_id) as leader:
        leader.append(b"head-o")  # cut otherwise: bytes count, not fragments
        leader.append(b"ne-two")
        reader.wait_for(b"head-one-two")
        leader.append(b"-end")
        leader.complete()
    assert reader.join() == (b"head-one-two-end", True)


def test_a_reader_is_cut_off_where_a_second_attempt_makes_other_bytes(server: Server, cut: tuple[Reader, str]) -> None:
    reader, video_id = cut
    with server.leading(video_id) as leader:
        leader.append(b"head")
        leader.append(b"-ONE-two")
        assert reader.join() == (b"head-one-", False)
        leader.complete()


@pytest.mark.parametrize(("content", "is_whole"), [(b"head-one-two", True), (b"head-ONE-two", False)])
def test_a_second_attempt_that_was_too_fast_to_be_seen_is_compared_too(
    server: Server, cut: tuple[Reader, str], monkeypatch: pytest.MonkeyPatch, content: bytes, is_whole: bool
) -> None:
    reader, video_id = cut
    monkeypatch.setattr(server.videos, "fragment", lambda *_, **__: None)
    with server.leading(video_id) as leader:
        leader.append(content)
        leader.complete()
    assert reader.join() == (b"head-one-two" if is_whole else b"head-one-", is_whole)


@pytest.mark.parametrize("ending", ["failed", "cancelled", "deleted"])
def test_a_video_that_ends_too_early_cuts_its_readers_off(server: Server, ending: str) -> None:
    video_id = server.create()
    with server.leading(video_id) as leader:
        leader.append(b"head")
        reader = Reader(server, video_id)
        reader.wait_for(b"head")
        if ending == "failed":
            server.store.fail(video_id, attempt=1, error=JobError("render_failed", "it broke"))
        else:
            server.store.request_cancel(video_id)
            server.store.cancel(video_id, attempt=1)
        if ending == "deleted":
            server.store.delete(video_id)
        server.videos.discard(video_id, attempt=1)
    assert reader.join() == (b"head", False)


def test_a_video_of_which_there_is_nothing_yet_is_not_waited_for_without_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.api.content.FIRST_BYTES_S", 0.05)
    answer = get(server, server.create())
    server.error(answer, 409, "not_ready")
    assert int(answer.headers["Retry-After"]) >= 5


def test_the_head_of_an_unfinished_video_does_not_wait(server: Server) -> None:
    answer = server.client.head(f"/v1/videos/{server.create()}/content")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "video/mp4")


def test_streams_are_counted_and_given_back(serve: Serve) -> None:
    with serve(api={"max_streams": 1}) as server:
        video_id = server.create()
        with server.leading(video_id) as leader:
            leader.append(b"head")
            reader = Reader(server, video_id)
            reader.wait_for(b"head")
            for path in (f"/v1/videos/{video_id}/content", f"/v1/videos/{video_id}/events"):
                answer = server.client.get(path)
                server.error(answer, 503, "unavailable")
                assert "Retry-After" in answer.headers
            leader.complete()
        reader.join()
        until(lambda: get(server, video_id).status_code == 200)


def test_a_reader_that_goes_away_gives_its_place_back(serve: Serve) -> None:
    with serve(api={"max_streams": 1}) as server:
        video_id = server.create()
        with server.leading(video_id) as leader:
            leader.append(b"head")
            with (
                new_client(server.url) as client,
                client.stream("GET", f"/v1/videos/{video_id}/content") as answer,
            ):
                next(answer.iter_bytes())
            until(lambda: server.app.state.context.streams.now == 0)


def test_a_reader_that_stops_reading_is_cut_off_in_the_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.api.guard.STALL_S", 0.2)
    with serve(api={"max_streams": 1}) as server:
        video_id = server.completed(b"x" * 40 * 2**20)
        with (
            new_client(server.url) as client,
            client.stream("GET", f"/v1/videos/{video_id}/content") as answer,
        ):
            chunks = answer.iter_raw()
            next(chunks)
            until(lambda: server.app.state.context.streams.now == 0)
            with pytest.raises(httpx2.RemoteProtocolError):
                list(chunks)


def test_who_waits_for_the_first_bytes_and_leaves_gives_its_place_back(serve: Serve) -> None:
    with serve(api={"max_streams": 1}) as server:
        path = f"/v1/videos/{server.create()}/content"
        with new_client(server.url, timeout_s=0.2) as client, pytest.raises(httpx2.TimeoutException):
            client.get(path)
        until(lambda: server.app.state.context.streams.now == 0)
        assert server.service.waiting == 0


def test_a_reader_that_stops_reading_holds_one_fragment(server: Server) -> None:
    video_id = server.create()
    num_fragments, fragment = 40, b"x" * 2**20
    read: list[int] = []
    original = server.videos.fragment

    def counted(job_id: str, *, attempt: int, number: int) -> bytes | None:
        found = original(job_id, attempt=attempt, number=number)
        if found is not None:
            read.append(number)
        return found

    server.videos.fragment = counted  # type: ignore[method-assign]
    with server.leading(video_id, num_blocks=num_fragments) as leader:
        for _ in range(num_fragments):
            leader.append(fragment)
        with (
            new_client(server.url) as client,
            client.stream("GET", f"/v1/videos/{video_id}/content") as answer,
        ):
            chunks = answer.iter_raw()
            next(chunks)
            assert len(read) < num_fragments / 2  # sockets hold a few MB
            leader.complete()
            assert sum(map(len, chunks)) > 0
