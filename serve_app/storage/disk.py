"""Files of this machine's disks, whole or not there: written under an unfinished name, moved to their place at the end.

    .MACHINERANDOM.part     hex digits; beside the file that it becomes

Whoever writes such a file holds a lock on it, which the kernel takes back when the process ends, however it ends. So
on one machine it is certain whether an unfinished file still has its writer. Other machines that share the disk may
not see the lock: for them, and on disks without locks, an hour without a write tells.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from serve_app.errors import InputNotFoundError, StorageError

COPY_BYTES = 1 << 20
NOT_A_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_UNFINISHED = re.compile(r"\.([0-9a-f]{8})?[0-9a-f]{16}\.part")
_SILENT_S = 3600.0
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What a disk says that knows no hard links, or of a file that has too many."""
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)


class Unfinished:
    """A file that is being written; every piece is on its way to the disk when `append` returns."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file

    def append(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:  # an unbuffered write may take a part only
            rest = rest[self._file.write(rest) :]

    def copy(self, source: BinaryIO) -> None:
        """Appends all that is left in another file."""
        while piece := source.read(COPY_BYTES):
            self.append(piece)

    def sync(self) -> None:
        """Waits until the disk has it. Its time is then the clock's own, finer than that of file systems."""
        now_ns = time.time_ns()
        os.utime(self._file.fileno(), ns=(now_ns, now_ns))
        os.fsync(self._file.fileno())

    def become(self, target: Path) -> None:
        """Moves it to its place, over an earlier file of that name."""
        self.path.replace(target)


@contextmanager
def unfinished_in(folder: Path) -> Iterator[Unfinished]:
    """Yields a new file in a folder that exists; unless it becomes another, nothing of it stays."""
    path, file = _create(folder)
    with file:
        try:
            yield Unfinished(path, file)
        finally:
            with suppress(OSError):  # it stands in its place
                path.unlink()


def link_over(path: Path, opened: BinaryIO, target: Path) -> None:
    """Gives a file that is `opened` a second name, in place of what has it; raises OSError where there are no links."""
    part = _unfinished_name(target.parent)
    with suppress(OSError):  # a disk without locks
        fcntl.flock(opened, fcntl.LOCK_SH)  # so that nobody takes the name in between for abandoned
    try:
        part.hardlink_to(path)
        part.replace(target)
    finally:
        with suppress(OSError):  # it stands in its place, or was that file already
            part.unlink()


def is_unfinished(name: str) -> bool:
    """Whether a file of this name is one that was never whole."""
    return _UNFINISHED.fullmatch(name) is not None


def remove_abandoned(path: Path) -> bool:
    """Removes an unfinished file whose writer is gone; says whether it did."""
    with suppress(FileNotFoundError, PermissionError), path.open("r+b") as file:
        if _is_abandoned(path, file):
            path.unlink()
            return True
    return False


def make_folder(folder: Path) -> Path:
    """Makes a folder, and those above it, on the disk when this returns."""
    if not folder.is_dir():
        make_folder(folder.parent)
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
        sync_folder(folder.parent)
    return folder


def sync_folder(folder: Path) -> None:
    """Makes durable what was named, renamed or removed in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:  # some shared disks know no such thing: their names are durable anyway
            raise
    finally:
        os.close(handle)


@contextmanager
def told_reading(path: Path) -> Iterator[None]:
    """Raises InputNotFoundError where `path` is no file, StorageError for what else hinders reading it."""
    try:
        yield
    except NOT_A_FILE as error:
        raise InputNotFoundError(
            f'there is no file "{path}"', remedy="put it there, or correct its name where it is asked for"
        ) from error
    except OSError as error:
        raise StorageError(
            f'"{error.filename or path}" cannot be read: {error.strerror or error}',
            remedy="see to the right to read it, and to the disk",
        ) from error


@contextmanager
def told_writing(path: Path) -> Iterator[None]:
    """Raises StorageError for what hinders writing or removing `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f'"{path}" cannot be written: {error.strerror or error}',
            remedy="choose a folder that is writable and has free space",
        ) from error


def _unfinished_name(folder: Path) -> Path:
    return folder / f".{_machine()}{secrets.token_hex(8)}.part"


def _create(folder: Path) -> tuple[Path, BinaryIO]:
    while True:
        path = _unfinished_name(folder)
        file = path.open("xb", buffering=0)
        with suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return path, file
        file.close()  # somebody who cleans came between the file and its lock


def _is_abandoned(path: Path, file: BinaryIO) -> bool:
    is_certain = path.name.startswith(f".{_machine()}")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk without locks
        is_certain = False
    return is_certain or time.time() - os.fstat(file.fileno()).st_mtime > _SILENT_S


@functools.cache
def _machine() -> str:
    """Returns eight hex digits of the kernel that runs here: as far as a lock reaches, whatever the container."""
    try:
        identity = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:  # not Linux
        identity = socket.gethostname()
    return hashlib.sha256(identity.encode()).hexdigest()[:8]
