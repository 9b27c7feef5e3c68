"""The output folder of bulk jobs: a folder a row, and what says that its video is done.

CUSTOM_ID/video.mp4       the video
CUSTOM_ID/result.json     written last: with the key of the row it is the only truth of success
CUSTOM_ID/attempt_N.log   what happened in an attempt of the newest run
videos/NAME.mp4           the archive: the same video under the name that users know
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from serve_app.bulk.row import Document
from serve_app.errors import InputNotFoundError, OutputError
from serve_app.storage.base import Folder, Stored, VideoSink
from serve_app.storage.disk import told_writing
from serve_app.storage.folders import is_remote, open_folder
from serve_app.storage.local import local_file

RESULT = "result.json"
ARCHIVE = "videos"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RowOutput:
    """Where one row's video goes; `spool` is a folder of this machine for what is on its way to a bucket."""

    folder: Folder
    custom_id: str
    spool: Path

    @property
    def uri(self) -> str:
        return self.folder.uri(self._name("video.mp4"))

    @property
    def is_far(self) -> bool:
        """Whether videos go to a bucket, over the spool."""
        return is_remote(self.folder.uri())

    def result(self) -> Document | None:
        """Returns what an earlier attempt committed, of whatever key; None where there is nothing whole."""
        return read_result(self.folder, self.custom_id)

    def prepare(self) -> None:
        """Takes back the result of an older version of the row: its video is about to be replaced."""
        self.folder.delete(self._name(RESULT))

    def sink(self) -> AbstractContextManager[VideoSink]:
        """Opens the place of the video; raises OutputError. On a disk that is its own place, else the spool."""
        return local_file(self._local())

    def publish(self) -> tuple[str, int]:
        """Brings the whole video to its place; returns the SHA-256 of its bytes and how many they are."""
        path = self._local()
        sha256, num_bytes = _digest(path)
        if self.is_far:
            self.folder.put(path, self._name("video.mp4"))
        return sha256, num_bytes

    def discard(self) -> None:
        """Removes what was on its way to a bucket: it is there, or will not be."""
        if self.is_far:
            self._local().unlink(missing_ok=True)

    def archive(self, name: str | None) -> None:
        """Puts the video under a second name, if it has one, into the archive: before it counts as done."""
        if name is None:
            return
        try:
            self.folder.copy(self._name("video.mp4"), _archived(name))
        except InputNotFoundError as error:
            raise OutputError(
                f'"{self.uri}" is gone, though its result.json is there',
                remedy=f'remove "{self.folder.uri(self._name(RESULT))}": then the row is rendered again',
            ) from error

    def is_archived(self, name: str) -> bool:
        """Whether the archive has this very video under a name, as far as that can be told without reading it.

        Two names of one file have the same version, and so have equal objects of a bucket, but for those that came
        there in parts: they count as not archived, for to copy them again is all that it costs.
        """
        try:
            video, archived = (self.folder.stat(one) for one in (self._name("video.mp4"), _archived(name)))
        except InputNotFoundError:
            return False
        return (video.num_bytes, video.version) == (archived.num_bytes, archived.version)

    def commit(self, result: Document) -> Document:
        """Makes the row done; returns the result that counts: another attempt's, where that was first.

        Where that one made other bytes they are replaced, and so is its result. Raises OutputError when what is there
        is of another key.
        """
        name, content, version = self._name(RESULT), json.dumps(result, indent=1).encode(), None
        while not self.folder.write_if(name, content, replaces=version):
            stored = self.folder.read(name)
            there = _parsed(stored)
            if stored is None or there is None or there["row_key"] != result["row_key"]:
                raise OutputError(
                    f'"{self.folder.uri(name)}" was written meanwhile, for another row',
                    remedy="let one job write to a folder; start this one again",
                )
            if there["sha256"] == result["sha256"]:
                return there
            version = stored.version
        return result

    def write_log(self, attempt: int, text: str) -> str:
        """Keeps what happened in an attempt; returns where."""
        name = self._name(f"attempt_{attempt}.log")
        self.folder.write(name, text.encode(errors="backslashreplace"))
        return self.folder.uri(name)

    def _name(self, name: str) -> str:
        return f"{self.custom_id}/{name}"

    def _local(self) -> Path:
        if self.is_far:
            return self.spool / f"{self.custom_id}.mp4"
        return Path(self.uri)


def read_result(folder: Folder, custom_id: str) -> Document | None:
    """Returns the result of a row; one that a crash spoiled is none."""
    return _parsed(folder.read(f"{custom_id}/{RESULT}"))


def _parsed(stored: Stored | None) -> Document | None:
    try:
        result = None if stored is None else json.loads(stored.content)
    except ValueError:
        return None
    return result if isinstance(result, dict) and {"row_key", "sha256"} <= result.keys() else None


def committed(folder: Folder) -> Iterator[str]:
    """Yields the ids of all rows that have a result."""
    for listed in folder.list():
        custom_id, slash, name = listed.name.partition("/")
        if slash and name == RESULT:
            yield custom_id


def open_output(uri: str) -> Folder:
    """Opens an output folder; raises InvalidRequestError for what is none."""
    return open_folder(uri if is_remote(uri) else str(Path(uri).absolute()))


def _archived(name: str) -> str:
    return f"{ARCHIVE}/{name}.mp4"


def _digest(path: Path) -> tuple[str, int]:
    """Returns digest and length; raises StorageError."""
    digest, num_bytes = hashlib.sha256(), 0
    with told_writing(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
    return digest.hexdigest(), num_bytes
