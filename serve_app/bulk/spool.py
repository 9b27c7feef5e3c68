"""Folders of this machine for what is on its way, to a bucket or from it; they go, however their owners end.

A process that is killed leaves its folder behind, and the next one that opens another beside it removes it. Those of
lanes are in the folder of Ray's session: that of a private Ray is removed with it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

_PREFIX = "avatar-bulk-"
_YOUNG_S = 60.0
"""So young, a folder that nobody holds may be one whose owner has not come to that yet."""


def place_of_lanes() -> Path:
    """Returns where the spools of lanes are on this node."""
    context = ray.get_runtime_context()
    return Path(context.get_temp_dir(), context.get_session_name(), "bulk_spools")


def place_of_drivers() -> Path:
    """Returns where the spools of drivers are: they outlive the Ray that a driver may start."""
    return Path(tempfile.gettempdir())


@contextmanager
def opened_spool(place: Path) -> Iterator[Path]:
    """Makes a folder in `place`, and removes it at the end; also those of ours that killed processes left there."""
    place.mkdir(parents=True, exist_ok=True)
    _remove_left(place)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place) as name, _held(Path(name)):
        yield Path(name)


def _remove_left(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody holds it, or removes it too
            status = folder.lstat()
            is_ours = status.st_uid == os.getuid()
            if is_ours and time.time() - status.st_mtime > _YOUNG_S:
                with _held(folder):
                    shutil.rmtree(folder)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Locks a folder until this process ends, however it does; raises OSError if another one has."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)
