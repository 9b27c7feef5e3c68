"""Videos over HTTP: created, planned, listed, cancelled, deleted."""

from __future__ import annotations

from tests.api.conftest import PROMPT, Server


def test_a_created_video_is_told_whole(server: Server) -> None:
    answer = server.post(**{"metadata[a]": "b", "user": "u1", "deadline_s": 60})
    assert answer.status_code == 200, answer.text
    video = answer.json()
    assert video["id"].startswith("video_")
    assert (video["object"], video["status"], video["progress"]) == ("video", "queued", 0)
    assert (video["model"], video["size"], video["seconds"]) == ("live-avatar-tiny", "128x128", "1")
    assert (video["fps"], video["num_frames"], video["prompt"]) == (25, 25, PROMPT)
    assert (video["metadata"], video["user"], video["warnings"]) == ({"a": "b"}, "u1", [])
    assert server.client.get(f"/v1/videos/{video['id']}").json() == video
    [submission] = server.service.submissions
    assert submission.deadline_s == 60
    assert server.files.get(submission.spec["image"]).kind == "image"
    assert server.files.get(submission.spec["audio"]).kind == "audio"
