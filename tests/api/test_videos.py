"""Videos over HTTP: created, planned, listed, cancelled, deleted."""

from __future__ import annotations

import asyncio
import base64
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from serve_app.api import videos
from serve_app.api.context import SeenFiles
from serve_app.jobs.job import Job, JobError, Priority
from serve_app.jobs.quote import Reason, Rejected
from serve_app.planning.geometry import Size
from serve_app.planning.workload import Workload
from serve_app.rendering import inputs
from serve_app.storage.files import ImageFacts
from tests.api.conftest import PORTRAIT, PROMPT, VOICE, Server, until

IMAGE_URI = "data:image/png;base64," + base64.b64encode(PORTRAIT).decode()
AUDIO_URI = "data:audio/wav;base64," + base64.b64encode(VOICE).decode()
AS_JSON: dict[str, Any] = {
    "prompt": PROMPT,
    "image_reference": {"image_url": IMAGE_URI},
    "audio_reference": {"audio_url": AUDIO_URI},
}
NEVER_FITS = Rejected(
    Reason.NEVER_FITS,
    "the video never fits these GPUs",
    figures={
        "needed_bytes": 20,
        "available_bytes": 10,
        "nearest": [
            {"change": "size 64x64", "size": "64x64", "infer_frames": 24},
            {"change": "infer_frames 12", "size": "128x128", "infer_frames": 12},
        ],
    },
)


def without_id(video: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in video.items() if name not in ("id", "created_at")}


def test_a_created_video_is_told_whole(server: Server) -> None:
    answer = server.post(**{"metadata[a]": "b"}, user="u1", deadline_s=60)
    assert answer.status_code == 200, answer.text
    video = answer.json()
    assert video["id"].startswith("video_")
    assert (video["object"], video["status"], video["progress"]) == ("video", "queued", 0)
    assert (video["model"], video["size"], video["seconds"]) == ("live-avatar-tiny", "128x128", "1")
    assert (video["fps"], video["num_frames"], video["prompt"]) == (25, 25, PROMPT)
    assert (video["metadata"], video["user"], video["warnings"]) == ({"a": "b"}, "u1", [])
    assert (video["quote"]["promise_in_s"], video["quote"]["position"]) == (7200.0, 2)
    assert (video["priority"], video["error"], video["completed_at"]) == ("standard", None, None)
    assert server.client.get(f"/v1/videos/{video['id']}").json() == video


def test_what_is_asked_for_reaches_the_dispatcher(server: Server) -> None:
    server.create(
        size="192x64", fit="exact", infer_frames=24, num_clip=3, seed=5, deadline_s=60, priority="bulk", seconds="0.5"
    )
    [told] = server.service.submissions
    assert (told.deadline_s, told.priority, told.model) == (60, Priority.BULK, "live-avatar-tiny")
    work = Workload(size=Size(192, 64), infer_frames=24, num_frames=12, speech_seconds=1.0)
    assert told.work == work
    assert (told.spec["num_clip"], told.spec["seed"], told.spec["max_seconds"]) == (3, 5, 0.5)
    assert server.files.get(told.spec["image"]).num_bytes == len(PORTRAIT)
    assert server.files.path_of(told.spec["audio"]).read_bytes() == VOICE
    assert told.input_bytes == len(PORTRAIT) + len(VOICE)
    assert [warning["code"] for warning in told.inputs["warnings"]] == ["other_infer_frames", "cut_audio"]


def test_forms_and_json_mean_the_same(server: Server) -> None:
    settings: dict[str, Any] = {
        "size": "64*64",
        "seed": 7,
        "infer_frames": 24,
        "enable_online_decode": False,
        "seconds": 0.8,
    }
    as_form = server.post(**settings, **{"metadata[k]": "v", "metadata[l]": "w"}).json()
    body = {**AS_JSON, **settings, "metadata": {"k": "v", "l": "w"}, "user": None}
    as_json = server.client.post("/v1/videos", json=body).json()
    assert without_id(as_form) == without_id(as_json)
    first, second = server.service.submissions
    assert first.work == second.work
    assert {**first.spec, "image": 0, "audio": 0} == {**second.spec, "image": 0, "audio": 0}


def test_data_uris_may_stand_in_a_form_and_the_sdk_name_in_json(server: Server) -> None:
    form = {"prompt": PROMPT, "image_reference[image_url]": IMAGE_URI, "audio_reference[audio_url]": AUDIO_URI}
    assert server.client.post("/v1/videos", files={name: (None, value) for name, value in form.items()}).is_success
    body = {"prompt": PROMPT, "input_reference": {"image_url": IMAGE_URI}, "audio_reference": {"audio_url": AUDIO_URI}}
    assert server.client.post("/v1/videos", json=body).is_success


def test_a_preset_sets_what_is_not_given(server: Server) -> None:
    server.create(preset="fast_preview", sample_steps=4, fit="exact", size="64x64")
    [told] = server.service.submissions
    assert (told.spec["infer_frames"], told.spec["num_clip"]) == (36, 20)
    assert (told.spec["sample_steps"], told.spec["size"]) == (4, "64x64")


def test_each_model_has_its_own_default_size(server: Server) -> None:
    server.create(model="live-avatar")
    server.create()
    assert [told.spec["size"] for told in server.service.submissions] == ["704x384", "128x128"]
    assert [told.model for told in server.service.submissions] == ["live-avatar", "live-avatar-tiny"]


def test_warnings_are_told_with_the_video(server: Server) -> None:
    video = server.post(prompt="Hello").json()
    assert [warning["code"] for warning in video["warnings"]] == ["short_prompt"]


def test_a_plan_tells_what_creating_would_and_keeps_nothing(server: Server) -> None:
    answer = server.post("/v1/videos/plan", seconds=0.4, num_clip=2)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert (plan["object"], plan["size"], plan["num_frames"], plan["video_seconds"]) == (
        "video.plan",
        "128x128",
        10,
        0.4,
    )
    assert (plan["seconds"], plan["promise_in_s"], plan["layout"]) == (2.0, 7200.0, "tiny")
    assert [warning["code"] for warning in plan["warnings"]] == ["cut_audio"]
    assert server.stored_files() == []
    assert server.client.get("/v1/videos").json()["data"] == []


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/videos/plan", "/v1/videos/sync"])
def test_what_never_fits_is_refused_with_the_numbers_and_leaves_nothing(server: Server, path: str) -> None:
    server.service.outcomes = [NEVER_FITS]
    error = server.error(server.post(path), 422, "never_fits")
    assert error["details"] == NEVER_FITS.figures
    assert error["message"].endswith("ask for one of details.nearest, or set accept_alternatives")
    assert server.stored_files() == []


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/videos/plan"])
def test_who_accepts_alternatives_gets_the_nearest_and_is_told(server: Server, path: str) -> None:
    server.service.outcomes = [NEVER_FITS]
    video = server.post(path, accept_alternatives="true").json()
    assert (video["size"], video["warnings"][0]["code"]) == ("64x64", "alternative_taken")
    assert video["warnings"][0]["message"].endswith("size 64x64")
    asked, taken = server.service.submissions
    assert (asked.work.size, taken.work.size, taken.work.infer_frames) == (Size(128, 128), Size(64, 64), 24)
    assert (taken.spec["size"], taken.spec["fit"], taken.spec["infer_frames"]) == ("64x64", "area", 24)


def test_where_the_alternative_does_not_fit_either_the_first_refusal_stands(server: Server) -> None:
    server.service.outcomes = [NEVER_FITS, Rejected(Reason.NO_CAPACITY, "full"), Rejected(Reason.NO_CAPACITY, "full")]
    server.error(server.post(accept_alternatives=True), 422, "never_fits")
    assert [told.spec["fit"] for told in server.service.submissions] == ["area", "area", "exact"]


@pytest.mark.parametrize(
    ("reason", "retry_after_s", "status", "least"),
    [
        (Reason.NO_CAPACITY, 10.2, 503, 11),
        (Reason.NO_CAPACITY, 0.01, 503, 1),
        (Reason.QUEUE_FULL, 40.0, 503, 40),
        (Reason.HOST_FULL, None, 503, None),
        (Reason.DRAINING, None, 503, None),
        (Reason.NO_GROUP, None, 503, None),
        (Reason.DEADLINE_TOO_SHORT, None, 422, None),
    ],
)
def test_refusals_say_when_to_come_again(
    server: Server, reason: Reason, retry_after_s: float | None, status: int, least: int | None
) -> None:
    server.service.outcomes = [Rejected(reason, "no", retry_after_s=retry_after_s, figures={"waiting": 3})]
    answer = server.post()
    assert server.error(answer, status, reason.value)["details"] == {"waiting": 3}
    if least is None:
        assert "Retry-After" not in answer.headers
    else:
        assert least <= int(answer.headers["Retry-After"]) <= least * 1.1 + 1


def test_while_the_dispatcher_is_away_clients_are_told_to_come_again(server: Server) -> None:
    server.service.is_ready = False
    answer = server.post()
    server.error(answer, 503, "unavailable")
    assert answer.headers["Retry-After"] in ("1", "2")
    server.error(server.client.get("/readyz"), 503, "unavailable")
    assert server.client.get("/livez").json() == {"status": "ok"}


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was written to the disk for certain, outside of the job store."""
    names: list[str] = []

    def note(handle: int) -> None:
        names.append(Path(f"/proc/self/fd/{handle}").readlink().name)

    monkeypatch.setattr(os, "fsync", note)
    return names


def test_only_what_is_accepted_is_worth_a_wait_for_the_disk(server: Server, synced: list[str]) -> None:
    server.service.outcomes = [Rejected(Reason.NO_CAPACITY, "full")]
    server.error(server.post(), 503, "no_capacity")
    assert synced == []
    server.create()
    assert sorted(synced) == sorted([*server.stored_files(), "inline"])


def test_who_is_refused_and_comes_again_is_decoded_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def counted(name: str, decode: Any) -> None:
        def count(*arguments: Any, **named: Any) -> Any:
            decoded.append(name)
            return decode(*arguments, **named)

        monkeypatch.setattr(inputs, name, count)

    counted("load_portrait", inputs.load_portrait)
    counted("measure_speech", inputs.measure_speech)
    server.service.outcomes = [Rejected(Reason.NO_CAPACITY, "full")] * 2
    server.error(server.post(), 503, "no_capacity")
    server.error(server.post("/v1/videos/plan"), 503, "no_capacity")
    first, second = server.create(), server.create(seed=1)
    assert decoded == ["load_portrait", "measure_speech"]
    told = [server.client.get(f"/v1/videos/{video_id}").json() for video_id in (first, second)]
    assert without_id(told[0]) == without_id(told[1])
    for _ in range(2):  # known as one kind is not known as the other, and what is refused is refused again
        swapped = {"input_reference": VOICE, "audio": PORTRAIT}
        server.error(server.post(files=swapped), 415, "unsupported_media")


def test_the_memory_of_files_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.api.context.MAX_SEEN", 2)
    seen, decoded = SeenFiles(), []

    def look(digest: str) -> None:
        seen.facts(digest, "image", lambda: decoded.append(digest) or ImageFacts(1, 1))

    for digest in ("a", "b", "a", "c", "a", "b"):
        look(digest)
    assert decoded == ["a", "b", "c", "b"]


def test_videos_are_listed_page_by_page(server: Server) -> None:
    ids = [server.create() for _ in range(3)]
    page = server.client.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in page["data"]] == [ids[2], ids[1]]
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", ids[2], ids[1], True)
    rest = server.client.get("/v1/videos", params={"limit": 2, "after": ids[1]}).json()
    assert ([video["id"] for video in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    oldest = server.client.get("/v1/videos", params={"order": "asc", "limit": 1}).json()
    assert oldest["data"][0]["id"] == ids[0]
    server.store.start(ids[1], group="g")
    running = server.client.get("/v1/videos", params={"status": "in_progress"}).json()
    assert [video["id"] for video in running["data"]] == [ids[1]]
    empty = server.client.get("/v1/videos", params={"status": "failed"}).json()
    assert (empty["data"], empty["first_id"], empty["last_id"]) == ([], None, None)


@pytest.mark.parametrize(
    "params", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"order": "up"}, {"status": "running"}]
)
def test_wrong_parameters_of_a_list_are_refused(server: Server, params: dict[str, Any]) -> None:
    [name] = params
    assert server.error(server.client.get("/v1/videos", params=params), 400, "invalid_request")["param"] == name


def test_a_video_is_followed_through_its_life(server: Server) -> None:
    video_id = server.create()
    with server.leading(video_id, num_blocks=2) as leader:
        leader.append(b"head")
        leader.append(b"one")
        video = server.client.get(f"/v1/videos/{video_id}").json()
        assert (video["status"], video["progress"]) == ("in_progress", 50)
        leader.append(b"two")
        assert server.client.get(f"/v1/videos/{video_id}").json()["progress"] == 99
        leader.complete(inference_time_s=1.25, peak_memory_mb=321.0)
    video = server.client.get(f"/v1/videos/{video_id}").json()
    assert (video["status"], video["progress"], video["error"]) == ("completed", 100, None)
    assert (video["inference_time_s"], video["peak_memory_mb"]) == (1.25, 321.0)
    assert video["expires_at"] - video["completed_at"] == server.config.times.keep_s
    assert video["queue_time_s"] >= 0


def test_a_failed_video_is_told_with_its_error(server: Server) -> None:
    video_id = server.create()
    server.store.fail(video_id, error=JobError("render_failed", f'"{server.folder}/live" broke'))
    answer = server.client.get(f"/v1/videos/{video_id}")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["error"]) == (
        "failed",
        {"code": "render_failed", "message": '".../live" broke'},
    )


def test_a_waiting_video_is_cancelled_at_once_and_only_once(server: Server) -> None:
    video_id = server.create()
    assert server.client.post(f"/v1/videos/{video_id}/cancel").json()["status"] == "cancelled"
    server.error(server.client.post(f"/v1/videos/{video_id}/cancel"), 409, "illegal_transition")


def test_a_running_video_is_asked_to_stop(server: Server) -> None:
    video_id = server.create()
    server.store.start(video_id, group="g")
    video = server.client.post(f"/v1/videos/{video_id}/cancel").json()
    assert (video["status"], video["cancel_requested"]) == ("in_progress", True)


def test_a_deleted_video_is_gone_with_what_came_with_its_request(server: Server) -> None:
    video_id = server.completed()
    answer = server.client.delete(f"/v1/videos/{video_id}")
    assert answer.json() == {"id": video_id, "object": "video.deleted", "deleted": True}
    assert server.stored_files() == []
    for path in (f"/v1/videos/{video_id}", f"/v1/videos/{video_id}/content", f"/v1/videos/{video_id}/events"):
        server.error(server.client.get(path), 404, "job_not_found")
    server.error(server.client.delete(f"/v1/videos/{video_id}"), 404, "job_not_found")
    server.error(server.client.post(f"/v1/videos/{video_id}/cancel"), 404, "job_not_found")


def test_what_came_with_a_request_goes_also_when_who_deletes_it_leaves(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    video_id = server.completed()
    delete = server.service.delete

    async def slow(job_id: str) -> Job:
        job = await delete(job_id)
        await asyncio.sleep(0.05)
        return job

    async def leave() -> None:
        api = server.app.state.context
        deleting = asyncio.create_task(videos.delete_video(video_id, api))
        while server.store.find(video_id) is not None:
            await asyncio.sleep(0.001)
        deleting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deleting
        await asyncio.gather(*api.tasks)

    monkeypatch.setattr(server.service, "delete", slow)
    asyncio.run(leave())
    assert server.stored_files() == []


def test_deleting_a_waiting_video_cancels_it_first(server: Server) -> None:
    video_id = server.create()
    assert server.client.delete(f"/v1/videos/{video_id}").json()["deleted"]
    assert server.stored_files() == []


def test_deleting_a_running_video_waits_until_it_has_stopped(server: Server) -> None:
    video_id = server.create()
    job = server.store.start(video_id, group="g")
    answers: list[Any] = []
    deleting = threading.Thread(target=lambda: answers.append(server.client.delete(f"/v1/videos/{video_id}")))
    deleting.start()
    until(lambda: server.service.waiting > 0)
    assert server.store.get(video_id).is_cancel_requested
    server.store.cancel(video_id, attempt=job.attempt)
    deleting.join()
    assert answers[0].json()["deleted"]


def test_a_running_video_that_does_not_stop_is_not_deleted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.api.videos.CANCEL_S", 0.05)
    video_id = server.create()
    server.store.start(video_id, group="g")
    answer = server.client.delete(f"/v1/videos/{video_id}")
    server.error(answer, 409, "cancel_pending")
    assert answer.headers["Retry-After"] in ("1", "2")
