"""A folder of this machine, or of a disk that several machines share, as a place for files."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from serve_app.storage import disk
from serve_app.storage.base import Listed, Stored, checked_name, checked_prefix, is_name
from serve_app.storage.disk import NOT_A_FILE, Unfinished, told_reading, told_writing

_Identity = tuple[int, int]


class LocalFolder:
    """A Folder on a disk; it need not exist before something is written. Versions are time, size and inode."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __repr__(self) -> str:
        return f"LocalFolder({str(self._root)!r})"

    def uri(self, name: str = "") -> str:
        return str(self._path(name) if name else self._root)

    def read(self, name: str) -> Stored | None:
        path = self._path(name)
        with told_reading(path):
            try:
                with path.open("rb") as file:
                    version = _version(os.fstat(file.fileno()))
                    return Stored(file.read(), version)
            except NOT_A_FILE:
                return None

    def write(self, name: str, content: bytes) -> None:
        with self._replacing(name) as part:
            part.append(content)

    def write_if(self, name: str, content: bytes, *, replaces: str | None) -> bool:
        path = self._path(name)
        with told_writing(path), disk.unfinished_in(disk.make_folder(path.parent)) as part:
            part.append(content)
            part.sync()
            did = _become_first(part, path) if replaces is None else _become_next(part, path, version=replaces)
            disk.sync_folder(path.parent)
            return did

    def put(self, path: Path, name: str) -> None:
        with told_reading(path), path.open("rb") as source, self._replacing(name) as part:
            part.copy(source)

    def copy(self, name: str, to: str) -> None:
        path = self._path(to)
        with self.open(name) as source, told_writing(path):
            try:
                disk.link_over(self._path(name), source, disk.make_folder(path.parent) / path.name)
                disk.sync_folder(path.parent)
            except OSError as error:
                if error.errno not in disk.NO_LINKS:
                    raise
                self.put(self._path(name), to)

    def fetch(self, name: str, path: Path) -> None:
        with self.open(name) as source, told_writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with disk.unfinished_in(path.parent) as part:
                part.copy(source)
                part.become(path)

    def open(self, name: str) -> BinaryIO:
        path = self._path(name)
        with told_reading(path):
            return path.open("rb")

    def stat(self, name: str) -> Listed:
        path = self._path(name)
        with told_reading(path):
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise IsADirectoryError
            return Listed(name, found.st_size, _version(found))

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        with told_reading(self._root):
            for name, entry in self._entries(prefix, is_deep=is_deep):
                if disk.is_unfinished(entry.name) or not is_name(name):
                    continue
                with suppress(FileNotFoundError):  # it went meanwhile, or is a link that leads nowhere
                    found = entry.stat()
                    if stat.S_ISREG(found.st_mode):
                        yield Listed(name, found.st_size, _version(found))

    def delete(self, name: str) -> None:
        path = self._path(name)
        with told_writing(path), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def clean(self, prefix: str = "") -> int:
        """See Folder. An unfinished file is named at random, beside its place: `prefix` should be a folder's."""
        with told_reading(self._root):
            entries = self._entries(prefix, is_deep=True)
            left = [self._root / name for name, entry in entries if disk.is_unfinished(entry.name)]
            return sum(disk.remove_abandoned(path) for path in left)

    def _path(self, name: str) -> Path:
        return self._root / checked_name(name)

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Unfinished]:
        """Yields a file that takes the place of another at the end, and is on the disk then."""
        path = self._path(name)
        with told_writing(path), disk.unfinished_in(disk.make_folder(path.parent)) as part:
            yield part
            part.sync()
            part.become(path)
            disk.sync_folder(path.parent)

    def _entries(self, prefix: str, *, is_deep: bool) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yields what is no folder, whose name begins with `prefix`, in the order of names."""
        return _walk(self._root, below="", prefix=checked_prefix(prefix), above=frozenset(), is_deep=is_deep)


def _version(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"


def _become_first(part: Unfinished, path: Path) -> bool:
    """Moves a file to a place that must be free; a link is made by one alone, also from several machines."""
    try:
        path.hardlink_to(part.path)
    except FileExistsError:
        return path.samefile(part.path)  # a server of files that asks itself twice may say so of its own success
    except OSError as error:
        if error.errno not in disk.NO_LINKS:
            raise
        if path.exists():
            return False
        part.become(path)
    return True


def _become_next(part: Unfinished, path: Path, *, version: str) -> bool:
    """Moves a file over another that must have `version`.

    That one is locked meanwhile: whoever else has opened it waits for the lock, and then sees that it was replaced.
    """
    try:
        with path.open("r+b") as present:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(present, fcntl.LOCK_EX)
            if _version(path.stat()) != version:
                return False
            part.become(path)
            return True
    except FileNotFoundError:
        return False


def _walk(
    folder: Path, *, below: str, prefix: str, above: frozenset[_Identity], is_deep: bool
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    for key, entry in _scanned(folder):
        name = below + key
        if not key.endswith("/"):
            if name.startswith(prefix):
                yield name, entry
        elif prefix.startswith(name) or (is_deep and name.startswith(prefix)):
            here = _identity(entry)
            if here not in above:  # a link back to a folder that this one is in
                inside = folder / entry.name
                yield from _walk(inside, below=name, prefix=prefix, above=above | {here}, is_deep=is_deep)


def _scanned(folder: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """Returns what is in a folder, in the order in which a bucket lists: that of whole names, "a-b/x" before "a/x"."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return sorted((f"{entry.name}/" if entry.is_dir() else entry.name, entry) for entry in entries)
    return []


def _identity(entry: os.DirEntry[str]) -> _Identity:
    found = os.stat(entry)  # noqa: PTH116  (the entry's own stat knows no inode of a link's target on some systems)
    return found.st_dev, found.st_ino
