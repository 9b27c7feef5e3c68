"""What happens to a video, as a stream of events."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from serve_app.jobs.job import JobError
from tests.api.conftest import ANSWER_S, Server, until


def events_of(server: Server, video_id: str, *, after: str | None = None) -> list[tuple[int, str, dict[str, Any]]]:
    """Reads the events of a video to their end: number, name, content."""
    headers = {} if after is None else {"Last-Event-ID": after}
    found, number, name = [], 0, ""
    with server.client.stream("GET", f"/v1/videos/{video_id}/events", headers=headers) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["Cache-Control"] == "no-store"
        for line in answer.iter_lines():
            field, _, value = line.partition(": ")
            if field == "id":
                number = int(value)
            elif field == "event":
                name = value
            elif field == "data":
                found.append((number, name, json.loads(value)))
    return found


def test_events_tell_a_video_from_the_queue_to_its_end(server: Server) -> None:
    video_id = server.completed()
    events = events_of(server, video_id)
    assert [(number, name) for number, name, _ in events] == [
        (1, "queued"),
        (2, "started"),
        (3, "block"),
        (4, "completed"),
    ]
    block, end = events[2][2], events[3][2]
    assert (block["id"], block["status"], block["blocks_done"], block["num_blocks"]) == (video_id, "in_progress", 1, 3)
    assert block["fps"] > 0
    assert block["eta_s"] >= 0
    assert (end["status"], end["progress"]) == ("completed", 100)
    assert str(server.folder) not in json.dumps(events)


def test_who_was_cut_off_goes_on_behind_the_last_event_seen(server: Server) -> None:
    video_id = server.completed()
    everything = events_of(server, video_id)
    assert events_of(server, video_id, after="2") == everything[2:]
    over = server.client.get(f"/v1/videos/{video_id}/events", headers={"Last-Event-ID": "4"})
    assert (over.status_code, over.content) == (204, b"")


@pytest.mark.parametrize("last", ["x", "-1", "1.5", str(2**63), "9" * 5000])
def test_a_wrong_last_event_id_is_refused(server: Server, last: str) -> None:
    answer = server.client.get(f"/v1/videos/{server.create()}/events", headers={"Last-Event-ID": last})
    assert server.error(answer, 400, "invalid_request")["param"] == "last-event-id"


def test_events_come_as_they_happen_with_the_place_in_the_queue(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.api.events.HEARTBEAT_S", 0.02)
    video_id = server.create()
    lines: list[str] = []

    def follow() -> None:
        with server.client.stream("GET", f"/v1/videos/{video_id}/events") as answer:
            for line in answer.iter_lines():
                lines.append(line)  # noqa: PERF402  (the test looks at them as they come)

    following = threading.Thread(target=follow)
    following.start()
    until(lambda: ": heartbeat" in lines)
    queued = json.loads(next(line for line in lines if line.startswith("data")).removeprefix("data: "))
    assert (queued["status"], queued["position"], queued["start_in_s"]) == ("queued", 2, 1.5)
    with server.leading(video_id) as leader:
        until(lambda: "event: started" in lines)
        leader.append(b"head")
        leader.append(b"one")
        until(lambda: "event: block" in lines)
        server.store.lose_group(video_id, attempt=1, cause=JobError("group_lost", "gone"), has_brought_down=False)
        until(lambda: "event: requeued" in lines)
    server.store.fail(video_id, error=JobError("render_failed", f"{server.folder}/x broke"))
    following.join()
    told = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert told == {"code": "render_failed", "message": ".../x broke"}


def test_who_names_an_event_that_never_was_is_let_go_when_the_video_ends(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.api.events.HEARTBEAT_S", 0.02)
    video_id = server.create()
    events: list[Any] = []
    following = threading.Thread(target=lambda: events.extend(events_of(server, video_id, after="1000")), daemon=True)
    following.start()
    until(lambda: server.service.waiting > 0)
    server.store.request_cancel(video_id)
    following.join(ANSWER_S)
    assert not following.is_alive()
    assert events == []


def test_events_of_a_video_that_is_deleted_meanwhile_end(server: Server) -> None:
    video_id = server.create()
    events: list[Any] = []
    following = threading.Thread(target=lambda: events.extend(events_of(server, video_id)))
    following.start()
    until(lambda: server.service.waiting > 0)
    with server.store._writing() as connection:  # both at once, so that nobody sees it cancelled
        connection.exec_driver_sql("DELETE FROM jobs")
    following.join()
    assert [name for _, name, _ in events] == ["queued"]
