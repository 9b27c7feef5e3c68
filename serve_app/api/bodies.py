"""Request bodies: a form or JSON, within limits, as fields and file parts; both mean the same."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serve_app.api.brackets import nested
from serve_app.api.context import Context, Share
from serve_app.api.errors import ApiError
from serve_app.errors import InvalidRequestError, OutputError, UnsupportedMediaError, shown

MAX_FIELDS = 64
MAX_FILES = 4
MAX_JSON_MARKS = 20_000
"""Commas and opening brackets, also within text: a longest prompt with the longest metadata has fewer."""
JSON_WEIGHT = 8
"""JSON is in memory, several times while it is read; most of a form is on the disk."""
PATIENCE_S = 60.0
LEAST_BYTES_PER_S = 16 * 1024
"""A body may pause for the former, and on average not be slower than the latter."""


@dataclass(frozen=True)
class Body:
    """What a request says: its fields, null ones left out, and its file parts by name."""

    fields: Mapping[str, Any]
    files: Mapping[str, UploadFile] = field(default_factory=dict)


@asynccontextmanager
async def read_body(request: Request, api: Context) -> AsyncIterator[Body]:
    """Reads a body; large files go to the disk, which forgets them when the `with` ends.

    Raises ApiError for one that is too large or comes too slowly, UnsupportedMediaError for another kind,
    InvalidRequestError for what cannot be read, UnavailableError when too much of others is held already.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise _not_understood(
            f"a body of type {shown(kind)}", "send multipart/form-data or application/json", "Content-Type"
        )
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise _not_understood(f"a body in coding {shown(coding)}", "send it as it is", "Content-Encoding")
    limits = api.config.api
    with api.room.share() as share:
        if kind == "application/json":
            written = bytearray()
            async for chunk in _received(request, limits.max_json_bytes, share, weight=JSON_WEIGHT):
                written += chunk
            yield Body(_without_nulls(_parsed(written)))
            return
        _check_charset(request)
        content = _received(request, limits.max_body_bytes, share)
        parser = _FormParser(request, content, max_field_bytes=limits.max_json_bytes)
        try:
            yield await _read_form(parser)
        finally:
            await asyncio.to_thread(parser.close)


def _not_understood(what: str, remedy: str, header: str) -> UnsupportedMediaError:
    return UnsupportedMediaError(f"{what} is not understood", remedy=remedy, param=header)


async def _received(request: Request, max_bytes: int, share: Share, *, weight: int = 1) -> AsyncGenerator[bytes, None]:
    """Yields a body as it comes; raises as soon as it is said, or seen, to be too large, or comes too slowly."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and (len(said) > len(str(max_bytes)) or int(said) > max_bytes):
        raise _too_large(max_bytes)
    loop = asyncio.get_running_loop()
    num_bytes, began, chunks = 0, loop.time(), request.stream()
    try:
        while True:
            early_s = num_bytes / LEAST_BYTES_PER_S - (loop.time() - began)
            async with asyncio.timeout(PATIENCE_S + min(0.0, early_s)):
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise _too_large(max_bytes)
            share.take(len(chunk) * weight)
            yield chunk
    except TimeoutError as error:
        raise _too_slow(num_bytes) from error
    except ClientDisconnect as error:
        raise InvalidRequestError("the body ended too early", remedy="send it again") from error


def _too_slow(num_bytes: int) -> ApiError:
    return ApiError(
        f"of the body only {num_bytes} bytes came",
        code="body_too_slow",
        remedy="send it again, over a faster line",
        details={"least_bytes_per_s": LEAST_BYTES_PER_S, "patience_s": PATIENCE_S},
        headers={"Connection": "close"},
    )


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        f"the body has more than {max_bytes} bytes",
        code="body_too_large",
        remedy="send smaller files; upload them one by one with POST /v1/files",
        details={"max_bytes": max_bytes},
    )


class _FormParser(MultiPartParser):
    """Starlette's, which leaves files on the disk; with one limit for all fields together, since they are in memory.

    What Starlette's lets pass is refused: a form that breaks off, of which it forgets the last part, and text that is
    not UTF-8, of which it makes other text.
    """

    def __init__(self, request: Request, content: AsyncGenerator[bytes, None], *, max_field_bytes: int) -> None:
        super().__init__(
            request.headers, content, max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=max_field_bytes
        )
        self._left_bytes = self._max_bytes = max_field_bytes
        self._is_whole = False

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._left_bytes -= end - start
            if self._left_bytes < 0:
                raise _too_large(self._max_bytes)
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        part = self._current_part
        try:
            if part.file is None:
                part.data.decode()
        except UnicodeDecodeError as error:
            raise MultiPartException(f"{shown(part.field_name)} is not UTF-8") from error
        super().on_part_end()

    def on_end(self) -> None:
        self._is_whole = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self._is_whole:
            raise MultiPartException("it breaks off")
        return form

    def close(self) -> None:
        """Forgets all files, also of parts that did not come to their end."""
        for file in self._files_to_close_on_error:
            file.close()


async def _read_form(parser: _FormParser) -> Body:
    try:
        pairs = (await parser.parse()).multi_items()
    except MultiPartException as error:
        raise InvalidRequestError(
            f"the form cannot be read: {error.message}", remedy="send multipart/form-data as curl -F does"
        ) from error
    except OSError as error:
        raise OutputError(
            f"the body cannot be kept while it is read: {error.strerror or error}",
            remedy="give the folder for temporary files space",
        ) from error
    _check_once([name for name, _ in pairs])
    fields = nested((name, value) for name, value in pairs if isinstance(value, str))
    return Body(fields, {name: value for name, value in pairs if isinstance(value, UploadFile)})


def _check_charset(request: Request) -> None:
    """Some of Python's codecs take hours for a few megabytes, so that a client may not choose one."""
    _, options = parse_options_header(request.headers["content-type"])
    charset = options.get(b"charset", b"utf-8")
    if charset.lower() != b"utf-8":
        raise _not_understood(f"a form in {shown(charset)}", "send it in UTF-8", "Content-Type")


def _parsed(content: bytes | bytearray) -> dict[str, Any]:
    # Millions of empty objects would keep the whole process busy for seconds, and take its memory.
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_MARKS:
        raise InvalidRequestError(
            f"the body has more than {MAX_JSON_MARKS} commas and brackets", remedy="send one flat JSON object"
        )
    try:
        fields = json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    # JSONDecodeError, UnicodeDecodeError and numbers of too many digits are ValueErrors.
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"the body is not JSON in UTF-8 ({_reason(error)})", remedy="send one JSON object"
        ) from error
    if not isinstance(fields, dict):
        raise InvalidRequestError(f"the body is {shown(fields)}, no JSON object", remedy="send one JSON object")
    return fields


def _reason(error: ValueError | RecursionError) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_once([name for name, _ in pairs])
    return dict(pairs)


def _refuse_constant(written: str) -> NoReturn:
    raise ValueError(f"{written} is no number in JSON")


def _check_once(names: list[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise InvalidRequestError(f"the field {shown(name)} comes {times} times", remedy="give it once", param=name)


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """SDKs write null for what was not given."""
    return {name: value for name, value in fields.items() if value is not None}
