"""What renders and bulk jobs ask of a place for files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from serve_app.errors import InvalidRequestError, shown


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

    Names are relative and written with "/", see `checked_name`; folders are made as names need them. What is written is
    there whole or not at all, for whoever looks. Raises InvalidRequestError for what is no name, InputNotFoundError for
    a file or a bucket that is read and not there, StorageError when the place does not answer or refuses; what may
    pass, such as a server that is busy, was tried again before that. Threads may share a folder.
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

        Of several that try at once one succeeds. A place that does not know conditions (some servers of S3, disks
        without locks or hard links) is asked just before, which leaves a gap of milliseconds.
        """
        ...

    def put(self, path: Path, name: str) -> None:
        """Copies a file of this machine to the place; it is on the disk, or in the bucket, when this returns."""
        ...

    def copy(self, name: str, to: str) -> None:
        """Gives a file of the place a second name, in place of what there may be; its bytes stay where they are."""
        ...

    def fetch(self, name: str, path: Path) -> None:
        """Copies a file of the place to this machine; without an error it is whole."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading anywhere in it, without fetching all of it first.

        Reading raises StorageError where the place fails, or a file in a bucket changed since it was opened.
        """
        ...

    def stat(self, name: str) -> Listed:
        """Returns what is known of a file without reading it."""
        ...

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        """Yields the files whose names begin with `prefix`, in any depth, sorted by name; none where nothing is.

        Not deep: those without a "/" behind the prefix alone. Folders there are not looked into, whatever they hold.
        Files that `checked_name` refuses are left out, and so are unfinished ones.
        """
        ...

    def delete(self, name: str) -> None:
        """Removes a file; one that is not there is no error."""
        ...

    def clean(self, prefix: str = "") -> int:
        """Removes what writers that were killed left unfinished below `prefix`, and returns how much that was.

        Writers that still write are not harmed: on a disk theirs stays; in a bucket, where nobody can tell, `put`
        starts its file again. What other programs upload below `prefix` ends as well: it should be nobody else's.
        """
        ...


def is_name(name: str) -> bool:
    """Whether a folder can have a file of this name: relative, without empty parts, "." and ".."."""
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a character: neither disks nor buckets write it
        return False
    return "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def checked_name(name: str) -> str:
    """Returns the name of a file; raises InvalidRequestError for one that no folder can have."""
    if is_name(name):
        return name
    raise InvalidRequestError(
        f"{shown(name)} is no name of a file in a folder",
        remedy='write it relative to the folder, with "/" between its parts, none of them empty, "." or ".."',
    )


def checked_prefix(prefix: str) -> str:
    """Returns what names shall begin with; raises InvalidRequestError where none can."""
    if prefix:
        checked_name(f"{prefix}x")
    return prefix
