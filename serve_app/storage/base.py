"""What renders and bulk jobs ask of a place for files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


class VideoSink(Protocol):
    """Takes one video piece by piece; it exists for others only once it is committed."""

    def append(self, fragment: bytes) -> None:
        """Adds bytes to the end. Raises OutputError."""
        ...

    def commit(self) -> str:
        """Makes the video visible, whole, and returns where it is. Raises OutputError."""
        ...


OpenSink = AbstractContextManager[VideoSink]
"""Leaving it without a commit leaves nothing behind."""


@dataclass(frozen=True)
class Stored:
    """A small file as it was read; `version` changes whenever the file does."""

    content: bytes
    version: str


@dataclass(frozen=True)
class Listed:
    """A file of a folder. `version` is cheap to ask for: it changes whenever the file does."""

    name: str
    num_bytes: int
    version: str


class Folder(Protocol):
    """A place of files: a folder of this machine (or of a disk that several share), or a prefix in a bucket.

    Names are relative and written with "/". What is written is there whole or not at all, for whoever looks. Raises
    InputNotFoundError for a file that is asked for and not there, StorageError when the place does not answer or
    refuses; what may pass, such as a server that is busy, was tried again before that.
    """

    def uri(self, name: str = "") -> str:
        """Returns where a file is, as users write it: a path, or s3://bucket/key."""
        ...

    def read(self, name: str) -> Stored | None:
        """Returns a small file, None where there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, in place of what there may be."""
        ...

    def write_if(self, name: str, content: bytes, *, replaces: str | None) -> bool:
        """Writes a small file if it still has version `replaces`, or with None if there is none; says whether it did.

        A server that does not know conditions is asked just before, which leaves a gap of milliseconds.
        """
        ...

    def put(self, path: Path, name: str) -> None:
        """Copies a file of this machine to the place; it is on the disk, or in the bucket, when this returns."""
        ...

    def fetch(self, name: str, path: Path) -> None:
        """Copies a file of the place to this machine; without an error it is whole."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading anywhere in it, without fetching all of it first."""
        ...

    def stat(self, name: str) -> Listed:
        """Returns what is known of a file without reading it."""
        ...

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Yields the files whose names begin with `prefix`, in any depth, sorted by name."""
        ...

    def delete(self, name: str) -> None:
        """Removes a file; one that is not there is no error."""
        ...

    def clean(self, prefix: str = "") -> int:
        """Removes what writers that were killed left unfinished below `prefix`, and returns how much that was."""
        ...
