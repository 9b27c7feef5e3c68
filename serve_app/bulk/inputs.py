"""Inputs of rows: where they are, what is in them, and the digest of their bytes."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from serve_app.errors import (
    InputNotFoundError,
    InvalidRequestError,
    StorageError,
    UnavailableError,
    UnsupportedMediaError,
    shown,
)
from serve_app.media.files import check_bytes
from serve_app.rendering.inputs import facts_of
from serve_app.schemas.config import AppConfig
from serve_app.storage.base import Folder, Listed
from serve_app.storage.disk import told_reading
from serve_app.storage.files import Facts, Kind
from serve_app.storage.folders import is_remote, join, open_folder, split_uri

_FOLDERS = {"image": "inputs/images", "audio": "inputs/audios"}
_CHUNK_BYTES = 1 << 20
_HOPELESS = 20
_REMEMBERED = 10_000
"""Rows share portraits and voices: what is in one is read once, as long as it is among the last so many."""


@dataclass(frozen=True)
class InputFile:
    """An input that was read: its full path or s3:// address, the SHA-256 of its bytes, and what it holds."""

    uri: str
    sha256: str
    facts: Facts


class InputReader:
    """Finds and reads inputs; from any number of threads."""

    def __init__(self, config: AppConfig, spool: Path) -> None:
        """`spool` is a folder of this machine for copies of what is in buckets."""
        self._config, self._spool = config, spool
        self._known: OrderedDict[tuple[str, str], InputFile] = OrderedDict()
        self._lock = threading.Lock()
        self._num_unreached = 0

    def read(self, written: str, *, base: str, kind: Kind) -> InputFile:
        """Returns what is in an input of a row; raises InputNotFoundError, UnsupportedMediaError or StorageError.

        Raises UnavailableError once so many inputs in buckets, one after the other, were not reached that none will be.
        """
        try:
            found = self._read(written, base, kind)
        except StorageError as error:
            if is_remote(join(base, written)):
                self._give_up_in_time(error)
            raise
        self._num_unreached = 0
        return found

    def _give_up_in_time(self, error: StorageError) -> None:
        """Counts what is not reached: each may take half a minute, and a manifest has a million rows."""
        with self._lock:
            self._num_unreached += 1
            is_hopeless = self._num_unreached >= _HOPELESS
        if is_hopeless:
            raise UnavailableError(
                f"{_HOPELESS} inputs one after the other could not be reached; the last: {error.message}",
                remedy=f"{error.remedy}; then start the job again",
            ) from error

    def _read(self, written: str, base: str, kind: Kind) -> InputFile:
        uri, there = _located(written, base, kind)
        key = (uri, f"{kind} {there.version}")
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = self._inspected(uri, there, kind)
        with self._lock:
            self._known[key] = found
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    def _inspected(self, uri: str, there: Listed, kind: Kind) -> InputFile:
        limits = self._config.image if kind == "image" else self._config.audio
        check_bytes(uri, there.num_bytes, limits.max_bytes, kind)  # before it is fetched
        with local_copy(uri, self._spool) as path, told_reading(path), _named(uri, path):
            found = InputFile(uri, _digest(path), facts_of(path, kind, config=self._config))
        if _stat(uri).version != there.version:
            raise StorageError(
                f'"{uri}" was changed while it was read', remedy="start the job again, once nobody writes it"
            )
        return found


@contextmanager
def local_copy(uri: str, spool: Path) -> Iterator[Path]:
    """Yields a file of this machine with the bytes of `uri`: itself, or a copy in `spool` that is gone afterwards."""
    if not is_remote(uri):
        yield Path(uri)
        return
    folder, name = split_uri(uri)
    with tempfile.TemporaryDirectory(prefix="input-", dir=spool) as place:
        path = Path(place) / f"input{Path(name).suffix}"
        _folder(folder).fetch(name, path)
        yield path


@contextmanager
def checked_copy(uri: str, *, sha256: str, spool: Path) -> Iterator[Path]:
    """Yields a file as `local_copy` does; raises InvalidRequestError when it is not the one that was checked."""
    with local_copy(uri, spool) as path:
        with told_reading(path):
            is_same = _digest(path) == sha256
        if not is_same:
            raise InvalidRequestError(
                f'"{uri}" has changed since the rows were checked',
                remedy="start the job again: it checks the row anew, and renders it with what is there then",
            )
        yield path


@contextmanager
def _named(uri: str, path: Path) -> Iterator[None]:
    """Has errors name the address that the user knows, not the copy."""
    try:
        yield
    except UnsupportedMediaError as error:
        raise type(error)(error.message.replace(str(path), uri), remedy=error.remedy, param=error.param) from error


@lru_cache(maxsize=256)
def _folder(uri: str) -> Folder:
    """Returns a folder; a bucket's keeps its connections."""
    return open_folder(uri)


def _stat(uri: str) -> Listed:
    """Returns what is known of a file; raises InvalidRequestError for what names none."""
    folder, name = split_uri(uri)
    try:
        return _folder(folder).stat(name)
    except InvalidRequestError as error:
        raise InputNotFoundError(error.message, remedy=error.remedy) from error


def _located(written: str, base: str, kind: Kind) -> tuple[str, Listed]:
    """Returns the first place where a file of that name is, and what is known of it there."""
    looked: dict[str, None] = {}
    for place in _places(written, base, kind):
        if place in looked:
            continue
        try:
            return place, _stat(place)
        except InputNotFoundError:
            looked[place] = None
    listed = ", ".join(f'"{place}"' for place in looked)
    raise InputNotFoundError(
        f"{kind} {shown(written)} is not there; looked for {listed}",
        remedy=f"put it there, or write its full path as {kind}",
        param=kind,
    )


def _places(written: str, base: str, kind: Kind) -> Iterator[str]:
    """Yields where an input may be: beside the manifest, or where users keep it: inputs/images, inputs/audios."""
    yield _without_dots(join(base, written))
    for folder in (_FOLDERS[kind], f"../{_FOLDERS[kind]}"):
        yield _without_dots(join(join(base, folder), written))


def _without_dots(uri: str) -> str:
    """Returns a path without "..", as the disk understands it: behind a link that is the folder above its target."""
    if ".." not in uri.split("/") or is_remote(uri):
        return uri
    path = Path(uri)
    if path.name == "..":
        return os.path.realpath(path)
    return str(Path(os.path.realpath(path.parent)) / path.name)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
