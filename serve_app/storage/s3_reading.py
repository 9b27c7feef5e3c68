"""Reads objects of S3, in one go or here and there; what breaks off is taken up where it broke."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError
from urllib3.exceptions import HTTPError

from serve_app.errors import StorageError
from serve_app.storage.base import Listed
from serve_app.storage.s3_errors import replaced, told

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

log = logging.getLogger(__name__)

READ_AHEAD_BYTES = 4 << 20
_PIECE_BYTES = 256 << 10
_PAUSE_S = 0.1
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")


class _BrokenOffError(Exception):
    """An answer ended before its time."""


@dataclass(frozen=True)
class S3Object:
    """Where an object is, and how to ask for it. `attempts`: so often in a row an answer may break off."""

    client: Any
    bucket: str
    key: str
    attempts: int

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def ask(self, *, start: int, stop: int | None, version: str) -> dict[str, Any]:
        """Sends a GET; raises InputNotFoundError and StorageError."""
        wanted = {"Bucket": self.bucket, "Key": self.key}
        if start or stop is not None:
            wanted["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        if version:
            wanted["IfMatch"] = f'"{version}"'
        with told(self.uri, endpoint=self.client.meta.endpoint_url, reads=True):
            answer: dict[str, Any] = self.client.get_object(**wanted)
        return answer


class Download:
    """The bytes of an object from `start` on, piece by piece; `version` is known once the first has come.

    Raises InputNotFoundError; StorageError also where the object is replaced meanwhile.
    """

    def __init__(self, source: S3Object, *, start: int = 0, stop: int | None = None, version: str = "") -> None:
        self.version = version
        self._source = source
        self._position = start
        self._stop = stop

    def __iter__(self) -> Iterator[bytes]:
        breaks = 0
        while not self._is_whole():
            began = self._position
            try:
                yield from self._answer()
            except _BrokenOffError as error:
                breaks = 1 if self._position - began >= _PIECE_BYTES else breaks + 1
                log.info("download broke off", extra={"uri": self._source.uri, "bytes": self._position, "row": breaks})
                if breaks >= self._source.attempts:
                    raise self._failed("answers break off each time") from error
                time.sleep(_PAUSE_S * 2 ** (breaks - 1))

    def _answer(self) -> Iterator[bytes]:
        """Yields what one answer brings."""
        answer = self._source.ask(start=self._position, stop=self._stop, version=self.version)
        self._check(answer)
        with closing(answer["Body"]) as body:
            while piece := _piece(body):
                self._position += len(piece)
                yield piece
        if not self._is_whole():
            raise _BrokenOffError

    def _is_whole(self) -> bool:
        return self._stop is not None and self._position >= self._stop

    def _check(self, answer: dict[str, Any]) -> None:
        """Compares what came with what was asked for: servers may ignore conditions and ranges."""
        version = version_of(answer)
        if self.version and version != self.version:
            raise replaced(self._source.uri)
        self.version = version
        start, stop = _span_of(answer)
        if self._stop is None:
            self._stop = stop
        if start != self._position or stop > self._stop:
            raise self._failed("the server does not know ranges")

    def _failed(self, reason: str) -> StorageError:
        return StorageError(f'"{self._source.uri}": {reason}', remedy="check AWS_ENDPOINT_URL and the network")


class ObjectFile(io.RawIOBase):
    """An object as a file: each read is one request, so that it should stand behind a buffer."""

    def __init__(self, source: S3Object, found: Listed) -> None:
        super().__init__()
        self._source = source
        self._found = found
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._found.num_bytes}[whence]
        if origin + offset < 0:
            raise ValueError(f"negative position {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view, start = memoryview(buffer).cast("B"), self._position
        for piece in self._pieces(min(start + len(view), self._found.num_bytes)):
            view[self._position - start : self._position - start + len(piece)] = piece
            self._position += len(piece)
        return self._position - start

    def readall(self) -> bytes:
        """Returns the rest, in one request; by itself Python would ask for a few KiB at a time."""
        rest = b"".join(self._pieces(self._found.num_bytes))
        self._position += len(rest)
        return rest

    def _pieces(self, stop: int) -> Iterator[bytes]:
        if self._position < stop:
            yield from Download(self._source, start=self._position, stop=stop, version=self._found.version)


def version_of(answer: dict[str, Any]) -> str:
    """Returns the ETag without its quotes, which some servers leave out here and there."""
    return str(answer["ETag"]).strip('"')


def _span_of(answer: dict[str, Any]) -> tuple[int, int]:
    """Returns where the bytes of an answer begin and end in the object."""
    found = _RANGE.fullmatch(answer.get("ContentRange", ""))
    return (int(found[1]), int(found[2]) + 1) if found else (0, int(answer["ContentLength"]))


def _piece(body: Any) -> bytes:  # noqa: ANN401  (botocore has no types)
    try:
        piece: bytes = body.read(_PIECE_BYTES)
        return piece
    except (BotoCoreError, HTTPError, OSError) as error:
        raise _BrokenOffError(type(error).__name__) from None
