"""What is sent for an arrival: portrait, voice and prompt, encoded before they are needed."""

from __future__ import annotations

import io
import json
import wave
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from math import ceil, pi, sin

import httpx2

from load_tests.arrivals import Arrival

FRAME_S = 1 / 25
CLIP_S = 48 * FRAME_S
"""A clip of the default infer_frames."""
_VOICE_RATE = 16_000
_NUM_KEPT = 64


@dataclass(frozen=True)
class Body:
    content: bytes
    type: str


@dataclass(frozen=True)
class Uploads:
    """File ids: of the portrait, and of the voices by the number of clips that they last."""

    portrait: str
    voices: Mapping[int, str]


@dataclass
class Bodies:
    """Makes bodies and keeps the last ones: forms with the files in them, or JSON where these were uploaded before."""

    uploads: Uploads | None
    _kept: dict[tuple[object, ...], Body] = field(default_factory=dict)

    def prepare(self, arrivals: Iterable[Arrival]) -> None:
        """Makes as many of them as are kept."""
        for arrival in arrivals:
            if len(self._kept) >= _NUM_KEPT:
                return
            self.of(arrival)

    def of(self, arrival: Arrival) -> Body:
        key = arrival.size, arrival.num_clip, arrival.priority, arrival.deadline_s
        body = self._kept.pop(key, None) or self._made(arrival)
        self._kept[key] = body
        if len(self._kept) > _NUM_KEPT:
            del self._kept[next(iter(self._kept))]
        return body

    def _made(self, arrival: Arrival) -> Body:
        fields = {"prompt": prompt(), "size": arrival.size, "num_clip": arrival.num_clip, "priority": arrival.priority}
        if arrival.deadline_s is not None:
            fields["deadline_s"] = arrival.deadline_s
        return _form(fields, arrival) if self.uploads is None else _document(fields, arrival, self.uploads)


async def upload(http: httpx2.AsyncClient, num_clips: Iterable[int]) -> Uploads:
    """Sends the portrait, and a voice for each length; raises httpx2.HTTPError."""

    async def send(name: str, content: bytes) -> str:
        answer = await http.post("/v1/files", files={"file": (name, content)}, data={"purpose": "user_data"})
        return str(answer.raise_for_status().json()["id"])

    voices = {clips: await send("voice.wav", voice(clips * CLIP_S)) for clips in num_clips}
    return Uploads(await send("portrait.png", portrait()), voices)


def _form(fields: Mapping[str, object], arrival: Arrival) -> Body:
    parts = {
        "input_reference": ("portrait.png", portrait(), "image/png"),
        "audio": ("voice.wav", voice(arrival.num_clip * CLIP_S), "audio/wav"),
    }
    texts = {name: str(value) for name, value in fields.items()}
    request = httpx2.Request("POST", "http://any/", data=texts, files=parts)
    return Body(request.read(), request.headers["Content-Type"])


def _document(fields: Mapping[str, object], arrival: Arrival, uploads: Uploads) -> Body:
    references = {
        "image_reference": {"file_id": uploads.portrait},
        "audio_reference": {"file_id": uploads.voices[arrival.num_clip]},
    }
    return Body(json.dumps({**fields, **references}).encode(), "application/json")


def prompt() -> str:
    """Returns the built-in sentence."""
    return files("serve_app.samples").joinpath("prompt.txt").read_text(encoding="utf-8").strip()


def portrait() -> bytes:
    """Returns the built-in portrait."""
    return files("serve_app.samples").joinpath("portrait.png").read_bytes()


def voice(seconds: float) -> bytes:
    """Returns a WAV of a tone of 160 Hz."""
    period = array("h", (round(9_000 * sin(2 * pi * number / 100)) for number in range(100)))
    num_samples = round(seconds * _VOICE_RATE)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(period.itemsize)
        file.setframerate(_VOICE_RATE)
        file.writeframes((period * ceil(num_samples / len(period)))[:num_samples].tobytes())
    return buffer.getvalue()
