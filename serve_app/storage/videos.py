"""The service's videos on a disk that all its processes see: block by block while they are made, then whole.

    live/JOB/ATTEMPT/0.mp4        the start of the file
    live/JOB/ATTEMPT/1.m4s ...    one fragment per block; all of them joined are the video
    videos/JOB/ATTEMPT.mp4        the video: it is there whole or not at all

An attempt writes what no other attempt writes, so that a leader which was given up cannot spoil its successor's work.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from serve_app.errors import OutputError

_COPY_BYTES = 1 << 20
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class VideoFiles:
    """All videos below one folder; any number of processes read, one leader writes an attempt."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def sink(self, job_id: str, *, attempt: int) -> Iterator[LiveVideo]:
        """Opens the place of an attempt's video; without a commit nothing of it stays."""
        video = LiveVideo(self._live(job_id, attempt), self.location(job_id, attempt))
        try:
            video.open()
            yield video
        except BaseException:
            self.discard(job_id, attempt=attempt)
            raise

    def location(self, job_id: str, attempt: int) -> Path:
        """Returns where an attempt's video is, or will be."""
        return self._root / "videos" / _checked(job_id) / f"{attempt}.mp4"

    def is_committed(self, job_id: str, *, attempt: int) -> bool:
        """Whether an attempt's video is there, whole."""
        return self.location(job_id, attempt).is_file()

    def fragment(self, job_id: str, *, attempt: int, number: int) -> bytes | None:
        """Returns a piece of a video that is being made: the start of the file is number 0; None: not there (yet)."""
        try:
            return _fragment(self._live(job_id, attempt), number).read_bytes()
        except FileNotFoundError:
            return None

    def open(self, job_id: str, *, attempt: int) -> BinaryIO | None:
        """Opens an attempt's whole video for reading; None where there is none."""
        try:
            return self.location(job_id, attempt).open("rb")
        except FileNotFoundError:
            return None

    def discard(self, job_id: str, *, attempt: int) -> None:
        """Removes what an attempt made that is not committed."""
        with suppress(OSError):
            shutil.rmtree(self._live(job_id, attempt))
        with suppress(OSError):
            self._live(job_id, attempt).parent.rmdir()
        with suppress(OSError):
            _unfinished(self.location(job_id, attempt)).unlink()

    def withdraw(self, job_id: str, *, attempt: int) -> None:
        """Removes all that an attempt made which was given up, its video too."""
        self.discard(job_id, attempt=attempt)
        with suppress(OSError):
            self.location(job_id, attempt).unlink()

    def end(self, job_id: str) -> None:
        """Removes the pieces of a job that has ended; its video stays.

        An attempt that was given up may still write: what it leaves goes with the job, in `delete`.
        """
        shutil.rmtree(self._root / "live" / _checked(job_id), ignore_errors=True)
        with suppress(OSError):
            for part in (self._root / "videos" / job_id).glob(_unfinished(Path("*")).name):
                part.unlink(missing_ok=True)

    def delete(self, job_id: str) -> None:
        """Removes everything of a job; what cannot be removed now is in `job_ids` still."""
        for folder in ("live", "videos"):
            shutil.rmtree(self._root / folder / _checked(job_id), ignore_errors=True)

    def job_ids(self) -> set[str]:
        """Returns the jobs of which anything is here."""
        found: set[str] = set()
        for folder in ("live", "videos"):
            with suppress(FileNotFoundError):
                found |= {entry.name for entry in (self._root / folder).iterdir() if _JOB_ID.fullmatch(entry.name)}
        return found

    def _live(self, job_id: str, attempt: int) -> Path:
        return self._root / "live" / _checked(job_id) / str(attempt)


class LiveVideo:
    """A VideoSink of one attempt; see VideoFiles."""

    def __init__(self, live: Path, target: Path) -> None:
        self._live = live
        self._target = target
        self._num_fragments = 0

    def open(self) -> None:
        """Makes the folders; what an earlier run of the same attempt left is removed."""
        with _written(self._target):
            shutil.rmtree(self._live, ignore_errors=True)
            self._live.mkdir(parents=True)
            self._target.parent.mkdir(parents=True, exist_ok=True)

    def append(self, fragment: bytes) -> None:
        """Adds a fragment; readers see it whole or not yet."""
        path = _fragment(self._live, self._num_fragments)
        with _written(path):
            part = _unfinished(path)
            part.write_bytes(fragment)
            part.replace(path)
        self._num_fragments += 1

    def commit(self) -> str:
        """Joins the fragments into the video, on the disk when this returns. The fragments stay for their readers."""
        part = _unfinished(self._target)
        with _written(self._target):
            with part.open("wb") as whole:
                for number in range(self._num_fragments):
                    with _fragment(self._live, number).open("rb") as fragment:
                        shutil.copyfileobj(fragment, whole, _COPY_BYTES)
                whole.flush()
                os.fsync(whole.fileno())
            part.replace(self._target)
            _sync_folder(self._target.parent)
        return str(self._target)


def _fragment(live: Path, number: int) -> Path:
    return live / (f"{number}.m4s" if number else "0.mp4")


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _checked(job_id: str) -> str:
    """Returns the id as a folder's name; ids come from URLs."""
    if not _JOB_ID.fullmatch(job_id):
        raise ValueError(f"{job_id!r} is no job id")
    return job_id


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f'"{path}" cannot be written: {error.strerror or error}',
            remedy="give the service's data folder space and the right to write",
        ) from error
