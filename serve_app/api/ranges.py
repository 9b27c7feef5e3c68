"""Files that are whole: in one piece, by range, or not again when the client has them."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping
from typing import BinaryIO

from fastapi import Request, Response

from serve_app.api.errors import ApiError
from serve_app.api.flow import FlowingResponse

CHUNK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def file_answer(request: Request, file: BinaryIO, *, etag: str, headers: Mapping[str, str]) -> Response:
    """Answers GET or HEAD with an open file, which is closed in the end; raises ApiError for a range outside of it.

    `etag` is strong: it stands for these very bytes. Several ranges at once are answered with the whole file.
    """
    num_bytes = os.fstat(file.fileno()).st_size
    told = {**headers, "ETag": etag, "Accept-Ranges": "bytes"}
    if _is_known(request.headers.get("if-none-match"), etag):
        file.close()
        return Response(status_code=304, headers=told)
    # Of HEAD, and of a part of another version, the whole is told.
    is_for_part = request.method == "GET" and request.headers.get("if-range", etag) == etag
    wanted = request.headers.get("range") if is_for_part else None
    try:
        part = None if wanted is None else parse_range(wanted, num_bytes)
    except ApiError:
        file.close()
        raise
    status = 200
    if part is not None:
        told["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{num_bytes}"
        status = 206
    part = part or range(num_bytes)
    told["Content-Length"] = str(len(part))
    if request.method == "HEAD":
        file.close()
        return Response(status_code=status, headers=told)
    return FlowingResponse(_chunks(file, part), status_code=status, headers=told)


def parse_range(written: str, num_bytes: int) -> range | None:
    """Returns the bytes that a Range header asks for; None for all, also where it is not understood.

    Raises ApiError when it asks for none of those that there are.
    """
    match = _RANGE.fullmatch(written.strip())
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        found = range(max(0, num_bytes - int(last)), num_bytes)
    else:
        found = range(int(first), min(int(last) + 1 if last else num_bytes, num_bytes))
        if last and int(last) < int(first):
            return None
    if not found:
        raise ApiError(
            f"range {written} holds none of {num_bytes} bytes",
            code="range_not_satisfiable",
            remedy="ask for bytes that are there",
            param="Range",
            details={"num_bytes": num_bytes},
            headers={"Content-Range": f"bytes */{num_bytes}"},
        )
    return found


def _is_known(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    named = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return etag in named or "*" in named


async def _chunks(file: BinaryIO, part: range) -> AsyncIterator[bytes]:
    with file:
        await asyncio.to_thread(file.seek, part.start)
        left = len(part)
        while left > 0:
            chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, left))
            if not chunk:
                raise EOFError("the file is shorter than it was")
            left -= len(chunk)
            yield chunk
