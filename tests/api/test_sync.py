"""POST /v1/videos/sync: the video itself, its failure, and clients that go away."""

from __future__ import annotations

import threading
from typing import Any

import httpx2
import pytest

from serve_app.jobs.job import JobError, JobState
from tests.api.conftest import Serve, Server, new_client, until
from tests.api.test_videos import AS_JSON


def test_a_sync_request_answers_the_video_itself(server: Server) -> None:
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(server.post("/v1/videos/sync")))
    waiting.start()
    until(lambda: server.service.waiting > 0)
    [job] = server.store.unfinished()
    with server.leading(job.id) as leader:
        leader.append(b"head")
        leader.append(b"body")
        leader.complete(inference_time_s=1.25, peak_memory_mb=321.0)
    waiting.join()
    [answer] = answers
    assert (answer.status_code, answer.content, answer.headers["Content-Type"]) == (200, b"headbody", "video/mp4")
    assert (answer.headers["X-Inference-Time-S"], answer.headers["X-Peak-Memory-MB"]) == ("1.250", "321.000")
    assert (answer.headers["X-Video-Id"], answer.headers["Content-Length"]) == (job.id, "8")
    assert answer.headers["X-Request-Id"].startswith("req_")


def test_a_sync_request_that_fails_says_why(server: Server) -> None:
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(server.post("/v1/videos/sync")))
    waiting.start()
    until(lambda: server.service.waiting > 0)
    server.store.fail(server.store.unfinished()[0].id, error=JobError("deadline_passed", "too late"))
    waiting.join()
    error = server.error(answers[0], 409, "no_content")
    assert error["details"] == {"code": "deadline_passed"}
    assert "too late" in error["message"]


def test_a_sync_request_is_not_waited_for_without_end(serve: Serve) -> None:
    with serve(api={"max_sync_s": 0.05}) as server:
        error = server.error(server.post("/v1/videos/sync"), 504, "sync_timeout")
        assert not server.store.get(error["details"]["id"]).state.is_final


def test_a_sync_client_that_goes_away_cancels_its_video(server: Server) -> None:
    def ask_and_leave() -> None:
        with new_client(server.url, timeout_s=0.5) as client, pytest.raises(httpx2.TimeoutException):
            client.post("/v1/videos/sync", json=AS_JSON)

    asking = threading.Thread(target=ask_and_leave)
    asking.start()
    until(lambda: server.service.waiting > 0)
    asking.join()
    until(lambda: not server.store.unfinished())
    assert [job.state for job in server.store.page().jobs] == [JobState.CANCELLED]


def test_a_sync_client_with_a_key_may_come_back(server: Server) -> None:
    headers = {"Idempotency-Key": "k1"}
    with new_client(server.url, timeout_s=0.5) as client, pytest.raises(httpx2.TimeoutException):
        client.post("/v1/videos/sync", json=AS_JSON, headers=headers)
    until(lambda: server.service.waiting == 0)
    [job] = server.store.unfinished()
    with server.leading(job.id) as leader:
        leader.append(b"head")
        leader.complete()
    assert server.client.post("/v1/videos/sync", json=AS_JSON, headers=headers).content == b"head"
