"""Folders of this machine for what is on its way to a bucket; they go, however their lanes end.

They are in the folder of Ray's session: that of a private Ray is removed with it. On a cluster that stays, a lane that
is killed leaves its folder behind, and the next one there removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import ray


def place_of_spools() -> Path:
    """Returns where spools are on this node."""
    context = ray.get_runtime_context()
    return Path(context.get_temp_dir(), context.get_session_name(), "bulk_spools")


@contextmanager
def opened_spool(place: Path) -> Iterator[Path]:
    """Makes a folder in `place`, and removes it at the end; also those that killed processes left there."""
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        with _held(place, fcntl.LOCK_EX):  # nobody takes a folder for left that is not held yet
            _remove_left(place)
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(dir=place)))
            opened.enter_context(_held(folder, fcntl.LOCK_EX))
        yield folder


def _remove_left(place: Path) -> None:
    for folder in place.iterdir():
        with suppress(BlockingIOError, FileNotFoundError), _held(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(folder: Path, how: int) -> Iterator[None]:
    """Locks a folder; the kernel lets go of it when this process ends, however it does."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, how)
        yield
    finally:
        os.close(opened)
