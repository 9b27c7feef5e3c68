"""The unmodified OpenAI client against the API."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import openai
import pytest

from tests.api.conftest import PORTRAIT, PROMPT, VOICE, Server, until

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="anything", max_retries=0) as client:
        yield client


def test_a_video_is_created_polled_downloaded_and_deleted(server: Server, client: openai.OpenAI) -> None:
    sound = client.files.create(file=("voice.wav", VOICE), purpose="user_data")
    assert (sound.object, sound.bytes, sound.filename) == ("file", len(VOICE), "voice.wav")

    def lead() -> None:
        until(lambda: bool(server.store.unfinished()))
        with server.leading(server.store.unfinished()[0].id) as leader:
            leader.append(b"head")
            leader.append(b"body")
            leader.complete()

    leading = threading.Thread(target=lead)
    leading.start()
    video = client.videos.create_and_poll(
        prompt=PROMPT,
        size="128x128",  # type: ignore[arg-type]
        seconds="8",
        input_reference=("portrait.png", PORTRAIT),
        extra_body={"audio_reference": {"file_id": sound.id}, "metadata": {"a": "b"}},
        poll_interval_ms=10,
    )
    leading.join()
    assert (video.status, video.progress, video.error, video.size, video.seconds) == (
        "completed",
        100,
        None,
        "128x128",
        "1",
    )
    assert client.videos.retrieve(video.id).id == video.id
    assert client.videos.download_content(video.id).read() == b"headbody"
    assert client.videos.download_content(video.id, variant="video").read() == b"headbody"
    with pytest.raises(openai.BadRequestError, match="variant"):
        client.videos.download_content(video.id, variant="thumbnail")
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError) as missing:
        client.videos.retrieve(video.id)
    assert missing.value.code == "job_not_found"
    assert client.files.delete(sound.id).deleted


def test_pages_are_followed(server: Server, client: openai.OpenAI) -> None:
    ids = [server.create() for _ in range(5)]
    assert [video.id for video in client.videos.list(limit=2, order="asc")] == ids
    files = [client.files.create(file=(f"{n}.png", PORTRAIT), purpose="vision").id for n in range(3)]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == files
    sound = client.files.create(file=("v.wav", VOICE), purpose="user_data").id
    assert [file.id for file in client.files.list(purpose="user_data")] == [sound]
    assert client.files.content(files[0]).read() == PORTRAIT
    assert client.files.retrieve(files[0]).filename == "0.png"


def test_references_by_id_work_too(server: Server, client: openai.OpenAI) -> None:
    image = client.files.create(file=("portrait.png", PORTRAIT), purpose="vision")
    sound = client.files.create(file=("voice.wav", VOICE), purpose="user_data")
    video = client.videos.create(
        prompt=PROMPT,
        extra_body={"image_reference": {"file_id": image.id}, "audio_reference": {"file_id": sound.id}},
    )
    told = server.client.get(f"/v1/videos/{video.id}").json()
    assert (told["image"], told["audio"]) == (image.id, sound.id)


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt=PROMPT)
    assert (refused.value.code, refused.value.param, refused.value.type) == (
        "invalid_request",
        "input_reference",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError, match=r"sora-2.* use one of live-avatar-tiny, live-avatar"):
        client.videos.create(prompt=PROMPT, model="sora-2", input_reference=PORTRAIT)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["live-avatar-tiny", "live-avatar"]
    assert client.models.retrieve("live-avatar").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sora-2")
