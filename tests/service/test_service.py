"""From HTTP to a video: a real server, real Ray, the tiny model."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import av
import httpx2
import openai
import pytest

from tests.service.conftest import PROMPT, Server, portrait, voice

BLOCK_FRAMES = 12
PLAUSIBLE_MB = 100, 4000
"""Of a process with torch and the tiny model."""
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def frames_of(mp4: bytes) -> int:
    with av.open(io.BytesIO(mp4)) as container:
        return sum(1 for _ in container.decode(video=0))


def events_of(answer: httpx2.Response) -> list[tuple[int, str, dict[str, Any]]]:
    """Reads a stream of events to its end: number, name, content."""
    events, number, name = [], 0, ""
    for line in answer.iter_lines():
        field, _, value = line.partition(": ")
        if field == "id":
            number = int(value)
        elif field == "event":
            name = value
        elif field == "data":
            events.append((number, name, json.loads(value)))
    return events


def test_a_form_and_json_mean_the_same_and_give_the_same_bytes(server: Server) -> None:
    as_form = server.create(seed=7)
    image = "data:image/png;base64," + base64.b64encode(portrait()).decode()
    sound = server.client.post("/v1/files", files={"file": ("a.wav", voice(1.0))}, data={"purpose": "user_data"})
    assert sound.status_code == 200, sound.text
    body = {
        "prompt": PROMPT,
        "size": "64*64",
        "seed": 7,
        "image_reference": {"image_url": image},
        "audio_reference": {"file_id": sound.json()["id"]},
    }
    as_json = server.client.post("/v1/videos", json=body)
    assert as_json.status_code == 200, as_json.text
    videos = [server.ended(one["id"]) for one in (as_form, as_json.json())]
    assert [video["status"] for video in videos] == ["completed"] * 2
    first, second = (server.content(video["id"]) for video in videos)
    assert first == second
    assert frames_of(first) == 25
    assert (videos[0]["size"], videos[0]["fps"], videos[0]["num_frames"]) == ("64x64", 25, 25)
    assert all(PLAUSIBLE_MB[0] < video["peak_memory_mb"] < PLAUSIBLE_MB[1] for video in videos)


def test_events_come_in_order_and_resume_behind_the_last_one_seen(server: Server) -> None:
    video = server.create(seconds=2.0)
    with server.client.stream("GET", f"/v1/videos/{video['id']}/events") as answer:
        events = events_of(answer)
    numbers, names, contents = zip(*events, strict=True)
    assert list(numbers) == list(range(1, len(numbers) + 1))
    assert (names[:2], names[-1]) == (("queued", "started"), "completed")
    assert set(names[2:-1]) == {"block"}
    blocks = [content["blocks_done"] for name, content in zip(names, contents, strict=True) if name == "block"]
    assert blocks == sorted(set(blocks))
    assert blocks[-1] == math.ceil(50 / BLOCK_FRAMES)
    with server.client.stream("GET", f"/v1/videos/{video['id']}/events", headers={"Last-Event-ID": "2"}) as answer:
        assert events_of(answer) == events[2:]


def test_a_video_is_read_while_it_is_made_by_several_readers_also_late_ones(server: Server) -> None:
    video = server.create(seconds=8.0)
    read: dict[str, bytes] = {}
    at_first_byte: list[str] = []

    def follow(name: str) -> None:
        with server.client.stream("GET", f"/v1/videos/{video['id']}/content") as answer:
            chunks = answer.iter_bytes()
            head = next(chunks)
            at_first_byte.append(server.video(video["id"])["status"])
            read[name] = head + b"".join(chunks)

    early = threading.Thread(target=follow, args=("early",))
    early.start()
    server.until(video["id"], lambda now: now["progress"] >= 40)
    late = threading.Thread(target=follow, args=("late",))
    late.start()
    for reader in (early, late):
        reader.join(60)
    assert at_first_byte == ["in_progress"] * 2
    whole = server.content(video["id"])
    assert read == {"early": whole, "late": whole}
    assert frames_of(whole) == 200


def test_parts_of_a_video_are_answered_by_range(server: Server) -> None:
    video = server.ended(server.create()["id"])
    path, whole = f"/v1/videos/{video['id']}/content", server.content(video["id"])
    part = server.client.get(path, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(whole)}"
    assert server.client.get(path, headers={"Range": "bytes=-50"}).content == whole[-50:]
    assert server.client.get(path, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    unchanged = server.client.get(path, headers={"If-None-Match": part.headers["ETag"]})
    assert unchanged.status_code == 304


def test_a_cancelled_video_stops_within_one_block(server: Server) -> None:
    video = server.create(seconds=60.0)
    before = server.until(video["id"], lambda now: now["progress"] >= 2)
    answer = server.client.post(f"/v1/videos/{video['id']}/cancel")
    assert answer.status_code == 200, answer.text
    with server.client.stream("GET", f"/v1/videos/{video['id']}/events") as stream:
        events = events_of(stream)
    asked = next(index for index, (_, name, _) in enumerate(events) if name == "cancel_requested")
    done_before = max(content["blocks_done"] for _, name, content in events[:asked] if name == "block")
    done_after = [content["blocks_done"] for _, name, content in events[asked:] if name == "block"]
    assert events[-1][1] == "cancelled"
    assert max(done_after, default=done_before) <= done_before + 2, (before, events[asked - 1 :])
    assert server.client.get(f"/v1/videos/{video['id']}/content").status_code >= 400
    assert server.client.post(f"/v1/videos/{video['id']}/cancel").status_code == 409


def test_what_never_fits_is_refused_with_numbers_and_what_would_fit(server: Server) -> None:
    wanted = {"size": "1280x720", "infer_frames": 480}
    refused = server.post(**wanted)
    assert refused.status_code == 422, refused.text
    error = refused.json()["error"]
    details = error["details"]
    assert error["code"] == "never_fits"
    assert details["needed_bytes"] > details["available_bytes"] == 2 * 2**30
    nearest = details["nearest"][0]
    fits = {"size": nearest["size"], "infer_frames": nearest["infer_frames"]}
    assert server.post("/v1/videos/plan", **fits, fit="exact").status_code == 200
    assert server.post("/v1/videos/plan", **wanted).json()["error"]["code"] == "never_fits"


def test_without_capacity_the_answer_says_when_to_come_again_and_that_is_true(server: Server) -> None:
    server.ended(server.create(seconds=4.0)["id"])  # so that the pace is known
    planned = server.post("/v1/videos/plan", seconds=4.0).json()
    deadline_s = 1.05 * planned["seconds"] + 3.0
    accepted = [server.create(seconds=4.0, deadline_s=deadline_s)]
    refused = server.post(seconds=4.0, deadline_s=deadline_s)
    while refused.status_code == 200:  # a fast machine keeps more promises
        accepted.append(refused.json())
        refused = server.post(seconds=4.0, deadline_s=deadline_s)
    assert refused.status_code == 503, refused.text
    assert refused.json()["error"]["code"] == "no_capacity"
    time.sleep(int(refused.headers["Retry-After"]))
    accepted.append(server.create(seconds=4.0, deadline_s=deadline_s))
    for video in accepted:
        assert server.ended(video["id"])["status"] == "completed"


def test_the_same_key_makes_one_video_and_another_request_with_it_is_refused(server: Server) -> None:
    headers = {"Idempotency-Key": "a-key-of-this-test"}
    first, again = (server.post(headers=headers) for _ in range(2))
    other = server.post(headers=headers, seed=99)
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    server.ended(first.json()["id"])


def test_the_openai_client_works_unmodified(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.client.base_url}/v1", api_key="unused")
    sound = client.files.create(file=("voice.wav", voice(1.0)), purpose="user_data")
    extra = {"audio_reference": {"file_id": sound.id}}
    video = client.videos.create_and_poll(
        prompt=PROMPT,
        size="64x64",  # type: ignore[arg-type]
        input_reference=("portrait.png", portrait()),
        extra_body=extra,
        poll_interval_ms=200,
    )
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert frames_of(client.videos.download_content(video.id).read()) == 25
    assert video.id in [one.id for one in client.videos.list(limit=5)]
    assert client.videos.retrieve(video.id).id == video.id
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_the_commands_of_the_readme_work(server: Server, tmp_path: Path) -> None:
    serving = README.split("\n## Serve\n", 1)[1].split("\n## ", 1)[0]
    ours = str(server.client.base_url).rstrip("/")
    (curl,) = re.findall(r"^```sh\n(curl .*)\n```$", serving, flags=re.MULTILINE)
    (python,) = re.findall(r"^```python\n(.*?)^```$", serving, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "me.png").write_bytes(portrait())
    (tmp_path / "voice.wav").write_bytes(voice(0.6))
    curl = curl.replace("http://127.0.0.1:8000", ours)
    created = subprocess.run(shlex.split(curl), cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert server.ended(json.loads(created.stdout)["id"])["status"] == "completed"
    script = python.replace("http://127.0.0.1:8000", ours)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    assert frames_of((tmp_path / "video.mp4").read_bytes()) == 15


def test_a_sync_request_answers_the_video_itself(server: Server) -> None:
    answer = server.post("/v1/videos/sync")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "video/mp4")
    assert frames_of(answer.content) == 25
    assert float(answer.headers["X-Inference-Time-S"]) > 0
    assert PLAUSIBLE_MB[0] < float(answer.headers["X-Peak-Memory-MB"]) < PLAUSIBLE_MB[1]


def test_what_there_is_can_be_asked(server: Server) -> None:
    named = server.client.get("/livez", headers={"X-Request-Id": "a-name-of-mine"})
    assert named.headers.get_list("X-Request-Id") == ["a-name-of-mine"]
    assert server.client.get("/livez").status_code == server.client.get("/readyz").status_code == 200
    models = server.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["live-avatar-tiny"]
    capacity = server.client.get("/v1/capacity").json()
    assert capacity["pools"][0]["groups"][0]["condition"] in ("ready", "busy")
    assert "fast_preview" in server.client.get("/v1/presets").text
    assert "/v1/videos/{video_id}/content" in server.client.get("/openapi.json").json()["paths"]
