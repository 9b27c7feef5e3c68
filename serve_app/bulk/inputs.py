"""Inputs of rows: where they are, what is in them, and the digest of their bytes."""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from serve_app.errors import InputNotFoundError, InvalidRequestError, shown
from serve_app.rendering.inputs import facts_of
from serve_app.schemas.config import AppConfig
from serve_app.storage.base import Folder
from serve_app.storage.disk import told_reading
from serve_app.storage.files import Facts, Kind
from serve_app.storage.folders import is_remote, open_folder, split_uri

_FOLDERS = {"image": "inputs/images", "audio": "inputs/audios"}
_CHUNK_BYTES = 1 << 20
_REMEMBERED = 10_000
"""Rows share portraits and voices: what is in one is read once, as long as it is among the last so many."""


@dataclass(frozen=True)
class InputFile:
    """An input that was read: its full path or s3:// address, the SHA-256 of its bytes, and what it holds."""

    uri: str
    sha256: str
    num_bytes: int
    facts: Facts


class InputReader:
    """Finds and reads inputs; from any number of threads."""

    def __init__(self, config: AppConfig) -> None:
        self._config = config
        self._known: OrderedDict[tuple[str, str], InputFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, written: str, *, base: str, kind: Kind) -> InputFile:
        """Returns what is in an input of a row; raises InputNotFoundError, UnsupportedMediaError or StorageError."""
        uri, version = _located(written, base, kind)
        key = (uri, f"{kind} {version}")
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = self._inspected(uri, kind)
        with self._lock:
            self._known[key] = found
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    def _inspected(self, uri: str, kind: Kind) -> InputFile:
        with local_copy(uri) as path, told_reading(path):
            facts = facts_of(path, kind, config=self._config)
            return InputFile(uri, _digest(path), path.stat().st_size, facts)


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """Yields a file of this machine with the bytes of `uri`: the file itself, or a copy that is gone afterwards."""
    if not is_remote(uri):
        yield Path(uri)
        return
    folder, name = split_uri(uri)
    with tempfile.TemporaryDirectory(prefix="avatar-input-") as place:
        path = Path(place) / f"input{Path(name).suffix}"
        _folder(folder).fetch(name, path)
        yield path


@lru_cache(maxsize=256)
def _folder(uri: str) -> Folder:
    """Returns a folder; a bucket's keeps its connections."""
    return open_folder(uri)


def _located(written: str, base: str, kind: Kind) -> tuple[str, str]:
    """Returns the first place where a file of that name is, and its version there."""
    places = dict.fromkeys(_places(written, base, kind))
    for place in places:
        folder, name = split_uri(place)
        try:
            return place, _folder(folder).stat(name).version
        except (InputNotFoundError, InvalidRequestError):
            continue
    listed = ", ".join(f'"{place}"' for place in places)
    raise InputNotFoundError(
        f"{kind} {shown(written)} is not there; looked for {listed}",
        remedy=f"put it there, or write its full path as {kind}",
        param=kind,
    )


def _places(written: str, base: str, kind: Kind) -> Iterator[str]:
    """Yields where an input may be: beside the manifest, or where users keep it: inputs/images, inputs/audios."""
    for folder in ("", _FOLDERS[kind], f"../{_FOLDERS[kind]}"):
        yield _resolved(base, folder, written)


def _resolved(base: str, *parts: str) -> str:
    """Returns a path or address without "..", which no bucket knows; a full one among the parts counts alone."""
    if is_remote(parts[-1]):
        return parts[-1]
    if not is_remote(base):
        return os.path.normpath(os.path.join(base, *parts))  # noqa: PTH118  (text that may be no path at all)
    return "s3:/" + posixpath.normpath(posixpath.join("/", base.removeprefix("s3://"), *parts))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
