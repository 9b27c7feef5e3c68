"""Uploads: what clients send, kept under ids of ours, with what was read from it.

    files/ID          the bytes
    files/ID.json     what is known of them; an upload is there once this is, and it is as old as this
    inline/...        the same for what came with a request: it belongs to that request's video alone

No name from a client is ever a path. Everybody sees a file at once; that it survives a crash of the machine costs far
more, and only `sync` promises it: most of what comes while there is no capacity goes again within milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from serve_app.errors import OutputError, UploadNotFoundError

Kind = Literal["image", "audio"]

INLINE = "inline"
"""Purpose of what came with a request."""
INLINE_S = 3600.0
"""So long after they came, inline files must have their video."""
MAX_NAME_CHARACTERS = 255
_COPY_BYTES = 1 << 20
_ID = re.compile(r"file_[0-9a-f]{32}")

_Age = tuple[int, str]
"""When an upload came, in nanoseconds, and the name of its description, which decides among equals."""


@dataclass(frozen=True)
class ImageFacts:
    """What was read from a portrait: its size in pixels, upright."""

    width: int
    height: int


@dataclass(frozen=True)
class AudioFacts:
    """What was read from a voice; see `media.audio.Speech`."""

    num_samples: int
    sample_rate: int
    peak: float
    rms: float
    clipped_share: float

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate


Facts = ImageFacts | AudioFacts
Inspect = Callable[[Path, str], Facts]
"""Says what is in a file of this SHA-256; raises UnsupportedMediaError."""


@dataclass(frozen=True)
class StoredFile:
    """An upload. `filename` is the client's word, for display alone; `sha256` is of the bytes."""

    id: str
    purpose: str
    filename: str
    num_bytes: int
    sha256: str
    created_at: float
    facts: Facts

    @property
    def kind(self) -> Kind:
        return "image" if isinstance(self.facts, ImageFacts) else "audio"


@dataclass(frozen=True)
class FilePage:
    """Some of the uploads, in order; `has_more` says whether others follow."""

    files: tuple[StoredFile, ...]
    has_more: bool


class FileStore:
    """Uploads below one folder; any number of processes add, read and remove."""

    def __init__(self, root: Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._uploads = root / "files"
        self._inline = root / "inline"
        self._now = wall_clock

    def add(self, source: BinaryIO, *, inspect: Inspect, purpose: str, filename: str = "") -> StoredFile:
        """Keeps a file that `inspect` accepts; of any other nothing stays.

        With purpose INLINE it is not listed. Raises what `inspect` raises, and OutputError.
        """
        file_id = _new_id()
        path = self._folder(purpose) / file_id
        with _unfinished(path) as part:
            num_bytes, sha256 = _copy(source, part)
            stored = StoredFile(
                id=file_id,
                purpose=purpose,
                filename=_shown_name(filename),
                num_bytes=num_bytes,
                sha256=sha256,
                created_at=self._now(),
                facts=inspect(part, sha256),
            )
            part.replace(path)
        self._describe(stored)
        return stored

    def borrow(self, file_id: str) -> StoredFile:
        """Returns an inline twin of an upload, which stays when that is deleted; raises UploadNotFoundError."""
        original = self.get(file_id)
        twin = StoredFile(**{**vars(original), "id": _new_id(), "purpose": INLINE, "created_at": self._now()})
        try:
            with _unfinished(self._inline / twin.id) as part:
                _link(self.path_of(file_id), part)
                os.utime(part)  # it is as old as the upload, and must not look forgotten until it is described
                part.replace(self._inline / twin.id)
        except FileNotFoundError as error:
            raise _not_found(file_id) from error
        self._describe(twin)
        return twin

    def sync(self, files: Iterable[StoredFile]) -> None:
        """Lets files survive a crash of the machine; one that was removed meanwhile is no error. Raises OutputError."""
        folders = set()
        with _told_as_output_error():
            for stored in files:
                folder = self._folder(stored.purpose)
                for path in (folder / stored.id, folder / f"{stored.id}.json"):
                    with suppress(FileNotFoundError):
                        _sync(path)
                folders.add(folder)
            for folder in folders:
                _sync(folder)

    def get(self, file_id: str) -> StoredFile:
        """Returns what is known of an upload, inline ones too; raises UploadNotFoundError."""
        stored = _read(self._about(file_id))
        if stored is None:
            raise _not_found(file_id)
        return stored

    def path_of(self, file_id: str) -> Path:
        """Returns where the bytes of an upload are; raises UploadNotFoundError."""
        return self._about(file_id).with_suffix("")

    def open(self, file_id: str) -> BinaryIO:
        """Opens an upload for reading; raises UploadNotFoundError."""
        try:
            return self.path_of(file_id).open("rb")
        except FileNotFoundError as error:
            raise _not_found(file_id) from error

    def page(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> FilePage:
        """Returns uploads in the order of their coming, from behind `after` on; raises UploadNotFoundError for that.

        Of all others no more than their age is looked at, but for those of other purposes that stand between.
        """
        everything = sorted(_ages(self._uploads), reverse=order == "desc")
        if after is not None:
            mark = self._age(after)
            everything = [one for one in everything if (one < mark if order == "desc" else one > mark)]
        read = (_read(self._uploads / name) for _, name in everything)
        wanted = (one for one in read if one is not None and purpose in (None, one.purpose))
        found = tuple(islice(wanted, limit + 1))
        return FilePage(found[:limit], has_more=len(found) > limit)

    def delete(self, file_id: str) -> None:
        """Removes an upload; raises UploadNotFoundError."""
        _remove(self._about(file_id))

    def expire(self, *, older_than_s: float, keep: Collection[str]) -> list[str]:
        """Removes what came so long ago, but for `keep`, and what a crash left half written; returns the ids.

        Inline files go much earlier: who is not in `keep` has no video that waits or runs, and nobody else may see it.
        """
        expired = []
        for folder, age_s in ((self._uploads, older_than_s), (self._inline, min(older_than_s, INLINE_S))):
            moment = self._now() - age_s
            stay = set()
            for stored in _stored(folder):
                if stored.created_at < moment and stored.id not in keep:
                    _remove(folder / f"{stored.id}.json")
                    expired.append(stored.id)
                else:
                    stay.add(stored.id)
            _sweep(folder, stay, written_before=moment)
        return expired

    def _folder(self, purpose: str) -> Path:
        return self._inline if purpose == INLINE else self._uploads

    def _about(self, file_id: str) -> Path:
        """Returns where an upload is described; ids come from URLs and may be anything."""
        if _ID.fullmatch(file_id):
            for folder in (self._uploads, self._inline):
                path = folder / f"{file_id}.json"
                if path.is_file():
                    return path
        raise _not_found(file_id)

    def _age(self, file_id: str) -> _Age:
        path = self._about(file_id)
        try:
            return path.stat().st_mtime_ns, path.name
        except FileNotFoundError as error:
            raise _not_found(file_id) from error

    def _describe(self, stored: StoredFile) -> None:
        """Makes an upload known."""
        path = self._folder(stored.purpose) / f"{stored.id}.json"
        with _unfinished(path) as part:
            part.write_text(json.dumps(asdict(stored)), encoding="utf-8")
            os.utime(part, (stored.created_at, stored.created_at))  # so that pages need not be read to be in order
            part.replace(path)


def _new_id() -> str:
    return f"file_{secrets.token_hex(16)}"


def _shown_name(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:MAX_NAME_CHARACTERS])


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to and to move there; whatever still has it at the end is removed."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with _told_as_output_error():
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def _told_as_output_error() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OutputError(
            f"the upload cannot be kept: {error.strerror or error}",
            remedy="give the service's data folder space and the right to write",
        ) from error


def _copy(source: BinaryIO, target: Path) -> tuple[int, str]:
    """Writes everything; returns the number of bytes and their digest."""
    num_bytes, digest = 0, hashlib.sha256()
    with target.open("xb") as file:
        while chunk := source.read(_COPY_BYTES):
            file.write(chunk)
            num_bytes += len(chunk)
            digest.update(chunk)
    return num_bytes, digest.hexdigest()


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _ages(folder: Path) -> Iterator[_Age]:
    """Yields the age of every description, without reading it."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("file_") and entry.name.endswith(".json"):
                with suppress(FileNotFoundError):
                    yield entry.stat().st_mtime_ns, entry.name


def _stored(folder: Path) -> Iterator[StoredFile]:
    with suppress(FileNotFoundError):
        for path in folder.glob("file_*.json"):
            stored = _read(path)
            if stored is not None:
                yield stored


def _read(path: Path) -> StoredFile | None:
    """Returns what a description says; None where there is none any more, or a crash of the machine spoiled it."""
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    facts = told.pop("facts")
    return StoredFile(**told, facts=ImageFacts(**facts) if "width" in facts else AudioFacts(**facts))


def _remove(about: Path) -> None:
    """The description first: without it the bytes are nobody's."""
    for path in (about, about.with_suffix("")):
        with suppress(FileNotFoundError):
            path.unlink()


def _sweep(folder: Path, stay: Collection[str], *, written_before: float) -> None:
    """Removes old files that no description names, and descriptions that a crash of the machine spoiled."""
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                if path.stem not in stay and path.stat().st_mtime < written_before:
                    path.unlink()


def _sync(path: Path) -> None:
    """Waits until the disk has a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _not_found(file_id: str) -> UploadNotFoundError:
    return UploadNotFoundError.of(file_id)
