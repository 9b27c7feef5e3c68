"""Requests that are sent again with their key: one video, whatever is lost or comes at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.errors import UnavailableError
from serve_app.jobs.job import Job
from serve_app.jobs.quote import Reason, Rejected
from serve_app.jobs.submission import Submission
from tests.api.conftest import PORTRAIT, PROMPT, VOICE, Server, new_client
from tests.api.test_videos import AS_JSON, NEVER_FITS


def test_the_same_key_makes_one_video_in_a_form_and_in_json(server: Server) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = server.post(headers=headers, seed=7).json()
    kept = server.stored_files()
    again = server.post(headers=headers, seed=7).json()
    as_json = server.client.post("/v1/videos", json={**AS_JSON, "seed": 7}, headers=headers).json()
    assert first["id"] == again["id"] == as_json["id"]
    assert server.stored_files() == kept
    assert len(server.service.submissions) == 1
    server.error(server.post(headers=headers, seed=8), 409, "idempotency_conflict")
    other_voice = {"input_reference": PORTRAIT, "audio": VOICE[:-2]}
    server.error(server.post(headers=headers, seed=7, files=other_voice), 409, "idempotency_conflict")


def test_the_same_key_many_times_at_once_makes_one_video(server: Server) -> None:
    """Sends forms and JSON together; who loses gets the winner's video, and leaves nothing."""

    def ask(number: int) -> str:
        with new_client(server.url) as client:
            if number % 2:
                answer = client.post("/v1/videos", json=AS_JSON, headers={"Idempotency-Key": "k"})
            else:
                files = {"input_reference": PORTRAIT, "audio": VOICE}
                answer = client.post(
                    "/v1/videos", data={"prompt": PROMPT}, files=files, headers={"Idempotency-Key": "k"}
                )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(ask, range(6)))) == 1
    assert len(server.stored_files()) == 4


def test_a_key_is_free_until_something_was_accepted(server: Server) -> None:
    headers = {"Idempotency-Key": "k"}
    server.service.outcomes = [Rejected(Reason.NO_CAPACITY, "full"), NEVER_FITS]
    server.error(server.post(headers=headers), 503, "no_capacity")
    server.error(server.post("/v1/videos/plan", headers=headers), 422, "never_fits")
    assert server.post(headers=headers, seed=5).status_code == 200
    server.error(server.post(headers=headers), 409, "idempotency_conflict")


def test_a_video_that_was_taken_without_a_word_has_its_files(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the Dispatcher go away between taking a video and saying so."""
    headers = {"Idempotency-Key": "k"}
    submit = server.service.submit

    async def taken_and_gone(submission: Submission) -> Job | Rejected:
        await submit(submission)
        raise UnavailableError("the Dispatcher does not answer", remedy="try again in some seconds")

    monkeypatch.setattr(server.service, "submit", taken_and_gone)
    server.error(server.post(headers=headers), 503, "unavailable")
    [job] = server.store.unfinished()
    assert server.files.path_of(job.spec["image"]).read_bytes() == PORTRAIT
    assert server.files.path_of(job.spec["audio"]).read_bytes() == VOICE
    assert server.post(headers=headers).json()["id"] == job.id
    assert len(server.stored_files()) == 4


def test_a_key_that_loses_a_race_leaves_no_files(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = server.post(headers=headers).json()
    kept = server.stored_files()

    async def none_yet(key: object) -> None:
        assert key

    monkeypatch.setattr(server.service, "find_same", none_yet)
    assert server.post(headers=headers).json()["id"] == first["id"]
    assert server.stored_files() == kept
