"""Videos in a local folder: written beside their place under another name, and moved there when whole."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from serve_app.errors import OutputError


class LocalFile:
    """A VideoSink for one file; fragments reach the disk as they are appended."""

    def __init__(self, target: Path, unfinished: Path, file: BinaryIO) -> None:
        self._target = target
        self._unfinished = unfinished
        self._file = file

    def append(self, fragment: bytes) -> None:
        rest = memoryview(fragment)
        try:
            while rest:  # an unbuffered write may take a part only
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _not_written(self._target, error) from error

    def commit(self) -> str:
        """Syncs the file and moves it to its place, over an earlier video of that name."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            self._unfinished.replace(self._target)
        except OSError as error:
            raise _not_written(self._target, error) from error
        return str(self._target)


@contextmanager
def local_file(target: Path) -> Iterator[LocalFile]:
    """Opens the place of a video, making its folder; raises OutputError when it cannot be written.

    Without a commit nothing stays: neither the unfinished file nor a folder made for it.
    """
    made = _missing_folders(target)
    unfinished = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with _create(target, unfinished) as file:
            yield LocalFile(target, unfinished, file)
    finally:
        with suppress(OSError):  # it stands in its place, or was never made
            unfinished.unlink()
        _remove_if_empty(made)


def _missing_folders(target: Path) -> list[Path]:
    """Returns the folders that do not exist yet, innermost first; refuses a target that is no place for a file."""
    try:
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "not a regular file"
            raise OutputError(f'"{target}" is {kind}', remedy="name a file, for example video.mp4", param="out")
        missing = [folder for folder in target.parents if not folder.exists()]
        ground = target.parents[len(missing)]
        if not ground.is_dir():
            raise OutputError(f'"{ground}" is not a folder', remedy="choose a folder for the video", param="out")
        return missing
    except OSError as error:  # a part of the path is too long, or may not be looked at
        raise _not_written(target, error) from error


def _create(target: Path, unfinished: Path) -> BinaryIO:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            target.lstat()  # says now, not after the render, that the name is too long
        return unfinished.open("xb", buffering=0)
    except OSError as error:
        raise _not_written(target, error) from error


def _remove_if_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it was never made, or holds the committed video or something of another process
            folder.rmdir()


def _not_written(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f'"{target}" cannot be written: {error.strerror}',
        remedy="choose a folder that is writable and has free space",
        param="out",
    )
