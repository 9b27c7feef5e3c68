"""Portrait and voice of a request: from a file part, a data: URI or an upload, to a file with known facts."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from serve_app.api.bodies import Body
from serve_app.api.context import Context
from serve_app.errors import AvatarError, InvalidRequestError, UnsupportedMediaError, UploadNotFoundError, shown
from serve_app.rendering.inputs import facts_of
from serve_app.schemas.config import AppConfig
from serve_app.schemas.video import VideoCreate
from serve_app.storage.files import INLINE, Facts, Kind, StoredFile

_CHUNK_BYTES = 1 << 20


class Source(Protocol):
    """Where an input of a request is."""

    @property
    def param(self) -> str: ...

    async def sha256(self, api: Context) -> str:
        """Returns the digest of its bytes."""
        ...

    async def stored(self, api: Context, kind: Kind) -> StoredFile:
        """Keeps a file of its own for the video, and returns it with its facts."""
        ...


@dataclass(frozen=True)
class Sent:
    """Bytes that came with the request."""

    param: str
    file: BinaryIO
    filename: str = ""

    async def sha256(self, api: Context) -> str:  # noqa: ARG002
        return await asyncio.to_thread(self._digest)

    def _digest(self) -> str:
        self.file.seek(0)
        digest = hashlib.sha256()
        while chunk := self.file.read(_CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()

    async def stored(self, api: Context, kind: Kind) -> StoredFile:
        return await api.decode(lambda: self._add(api, kind))

    def _add(self, api: Context, kind: Kind) -> StoredFile:
        self.file.seek(0)

        def inspect(path: Path, sha256: str) -> Facts:
            return api.seen.facts(sha256, kind, lambda: _facts(path, kind, self.param, api.config))

        return api.files.add(self.file, inspect=inspect, purpose=INLINE, filename=self.filename)


@dataclass(frozen=True)
class Uploaded:
    """A file that was uploaded before."""

    param: str
    file_id: str

    async def sha256(self, api: Context) -> str:
        with _as_param(self.param):
            return (await asyncio.to_thread(api.files.get, self.file_id)).sha256

    async def stored(self, api: Context, kind: Kind) -> StoredFile:
        """Lets the video have a twin of its own, so that the upload may be deleted meanwhile."""
        with _as_param(self.param):
            original = await asyncio.to_thread(api.files.get, self.file_id)
            if original.kind != kind:
                raise InvalidRequestError(
                    f"{self.file_id} is of kind {original.kind}, {self.param} wants {kind}",
                    remedy=f"name a file of kind {kind}",
                    param=self.param,
                )
            return await asyncio.to_thread(api.files.borrow, self.file_id)


@dataclass(frozen=True)
class Sources:
    """Both inputs of a request."""

    image: Source
    audio: Source


def sources(wanted: VideoCreate, body: Body) -> Sources:
    """Returns where portrait and voice are; raises InvalidRequestError unless each is given once, in a known way."""
    for name in body.files:
        if name not in ("input_reference", "audio"):
            raise InvalidRequestError(
                f"the file part {shown(name)} is not understood",
                remedy="send the portrait as input_reference and the voice as audio",
                param=name,
            )
    images, audios = [], []
    for name in ("image_reference", "input_reference"):
        image = getattr(wanted, name)
        if image is not None:
            images.append(_referenced(name, "image_url", image.image_url, image.file_id))
    if wanted.audio_reference is not None:
        audio = wanted.audio_reference
        audios.append(_referenced("audio_reference", "audio_url", audio.audio_url, audio.file_id))
    for name, found in (("input_reference", images), ("audio", audios)):
        part = body.files.get(name)
        if part is not None:
            found.append(Sent(name, part.file, part.filename or ""))
    return Sources(_only(images, "input_reference", "image_reference"), _only(audios, "audio", "audio_reference"))


def _referenced(param: str, url_name: str, url: str | None, file_id: str | None) -> Source:
    if (url is None) == (file_id is None):
        raise InvalidRequestError(
            f"{param} has {'neither' if url is None else 'both'} {url_name} and file_id",
            remedy="give one of the two",
            param=param,
        )
    if file_id is not None:
        return Uploaded(f"{param}.file_id", file_id)
    assert url is not None
    return Sent(f"{param}.{url_name}", io.BytesIO(_decoded(url, f"{param}.{url_name}")))


def _decoded(url: str, param: str) -> bytes:
    """Returns what a data: URI holds. Its media type is not believed: decoders look at the bytes."""
    head, comma, payload = url.partition(",")
    if not head[:5].lower() == "data:":
        raise InvalidRequestError(
            f"{param} {shown(url)} is no data: URI, and this version fetches nothing",
            remedy="send the file as a part of a form, upload it with POST /v1/files, or write data:...;base64,...",
            param=param,
        )
    if not comma or not head.lower().endswith(";base64"):
        raise InvalidRequestError(
            f"{param} {shown(url)} is not in base64", remedy="write data:<type>;base64,<content>", param=param
        )
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(
            f"{param} is not valid base64 ({error})", remedy="encode the whole file, without line breaks", param=param
        ) from error


def _only(found: list[Source], part: str, reference: str) -> Source:
    if len(found) == 1:
        return found[0]
    given = " and ".join(source.param for source in found)
    message = f"{given} are given, which is one too many" if found else f"{part} is missing"
    raise InvalidRequestError(message, remedy=f"send either a file part {part} or {reference}", param=part)


def _facts(path: Path, kind: Kind, param: str, config: AppConfig) -> Facts:
    """Decodes a file as what it shall be; in what is said of it, the client's word stands for our path."""
    try:
        return facts_of(path, kind, config=config)
    except AvatarError as error:
        # Decoders name the file too, in their own way.
        message = error.message.replace(f'"{path}"', param).replace(str(path), param)
        raise UnsupportedMediaError(message, remedy=error.remedy, param=param) from error


def inspect_any(path: Path, config: AppConfig) -> Facts:
    """Decodes a file as an image, or else as sound; raises UnsupportedMediaError that says why it is neither."""
    try:
        return _facts(path, "image", "file", config)
    except UnsupportedMediaError as no_image:
        try:
            return _facts(path, "audio", "file", config)
        except UnsupportedMediaError as no_sound:
            raise UnsupportedMediaError(
                f"the file is neither an image ({no_image.message}) nor sound ({no_sound.message})",
                remedy="send a portrait (PNG, JPEG, WebP, ...) or a voice (WAV, MP3, M4A, FLAC, OGG, ...)",
                param="file",
            ) from no_sound


@contextmanager
def _as_param(param: str) -> Iterator[None]:
    """Lets an error about an upload name the field that named it."""
    try:
        yield
    except UploadNotFoundError as error:
        raise UploadNotFoundError(error.message, remedy=error.remedy, param=param) from error
