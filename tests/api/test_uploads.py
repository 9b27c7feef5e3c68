"""Uploads over HTTP, and videos that are made with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import PORTRAIT, PROMPT, VOICE, Server

IMAGE = {"file": ("me.png", PORTRAIT)}


def upload(server: Server, content: bytes, name: str = "me.png") -> str:
    answer = server.client.post("/v1/files", files={"file": (name, content)}, data={"purpose": "user_data"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_an_upload_is_told_with_what_was_read_from_it(server: Server) -> None:
    image = server.client.post("/v1/files", files=IMAGE, data={"purpose": "vision"}).json()
    assert (image["object"], image["bytes"], image["filename"], image["purpose"]) == (
        "file",
        len(PORTRAIT),
        "me.png",
        "vision",
    )
    assert (image["kind"], image["facts"], image["status"]) == ("image", {"width": 512, "height": 512}, "processed")
    sound = server.client.get(f"/v1/files/{upload(server, VOICE)}").json()
    assert (sound["kind"], sound["facts"]["seconds"], sound["facts"]["sample_rate"]) == ("audio", 1.0, 16_000)
    assert set(sound["facts"]) == {"num_samples", "sample_rate", "seconds", "peak", "rms", "clipped_share"}


def test_an_upload_is_on_the_disk_for_certain_when_it_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name))
    file_id = upload(server, PORTRAIT)
    assert sorted(synced) == sorted([file_id, f"{file_id}.json", "files"])


def test_the_bytes_come_back_in_parts_too_and_never_as_a_page(server: Server) -> None:
    file_id = upload(server, PORTRAIT)
    answer = server.client.get(f"/v1/files/{file_id}/content")
    assert answer.content == PORTRAIT
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    part = server.client.get(f"/v1/files/{file_id}/content", headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")


def test_uploads_are_listed_and_what_came_with_requests_is_not(server: Server) -> None:
    server.create()
    ids = [upload(server, PORTRAIT) for _ in range(3)]
    page = server.client.get("/v1/files", params={"limit": 2}).json()
    assert [file["id"] for file in page["data"]] == [ids[2], ids[1]]
    assert (page["has_more"], page["last_id"]) == (True, ids[1])
    rest = server.client.get("/v1/files", params={"after": ids[1]}).json()
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    inline = server.service.submissions[0].spec["image"]
    for path in (f"/v1/files/{inline}", f"/v1/files/{inline}/content"):
        server.error(server.client.get(path), 404, "file_not_found")
    server.error(server.client.delete(f"/v1/files/{inline}"), 404, "file_not_found")


def test_a_video_keeps_its_inputs_when_their_upload_is_deleted(server: Server) -> None:
    image, audio = upload(server, PORTRAIT), upload(server, VOICE)
    body = {"prompt": PROMPT, "image_reference": {"file_id": image}, "audio_reference": {"file_id": audio}}
    video = server.client.post("/v1/videos", json=body).json()
    assert (video["image"], video["audio"]) == (image, audio)
    deleted = server.client.delete(f"/v1/files/{image}").json()
    assert deleted == {"id": image, "object": "file", "deleted": True}
    server.error(server.client.delete(f"/v1/files/{image}"), 404, "file_not_found")
    [told] = server.service.submissions
    assert server.files.path_of(told.spec["image"]).read_bytes() == PORTRAIT
    assert server.client.delete(f"/v1/videos/{video['id']}").json()["deleted"]
    assert server.stored_files() == sorted([audio, f"{audio}.json"])


@pytest.mark.parametrize(
    ("files", "fields", "status", "code", "param"),
    [
        ({"file": b"no media"}, {}, 415, "unsupported_media", "file"),
        ({"file": b""}, {}, 415, "unsupported_media", "file"),
        ({"file": PORTRAIT}, {"purpose": "fine-tune"}, 400, "invalid_request", "purpose"),
        ({"file": PORTRAIT}, {"expires_after[seconds]": "9"}, 400, "invalid_request", "expires_after"),
        ({"fiel": PORTRAIT}, {}, 400, "invalid_request", "fiel"),
        ({"file": (None, "text")}, {}, 400, "invalid_request", "file"),
        ({"other": (None, "text")}, {}, 400, "invalid_request", "other"),
    ],
)
def test_a_wrong_upload_is_refused_and_leaves_nothing(
    server: Server, files: Any, fields: dict[str, str], status: int, code: str, param: str
) -> None:
    error = server.error(server.client.post("/v1/files", files=files, data=fields), status, code)
    assert error["param"] == param
    assert str(server.folder) not in error["message"]
    assert server.stored_files() == []


def test_an_upload_in_json_is_refused(server: Server) -> None:
    assert server.error(server.client.post("/v1/files", json={}), 400, "invalid_request")["param"] == "file"
