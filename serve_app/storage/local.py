"""Videos in a local folder: written beside their place under another name, and moved there when whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from serve_app.errors import OutputError
from serve_app.storage.disk import Unfinished, unfinished_in


class LocalFile:
    """A VideoSink for one file; fragments reach the disk as they are appended."""

    def __init__(self, target: Path, unfinished: Unfinished) -> None:
        self._target = target
        self._unfinished = unfinished

    def append(self, fragment: bytes) -> None:
        with _told(self._target):
            self._unfinished.append(fragment)

    def commit(self) -> str:
        """Syncs the file and moves it to its place, over an earlier video of that name."""
        with _told(self._target):
            self._unfinished.sync()
            self._unfinished.become(self._target)
        return str(self._target)


@contextmanager
def local_file(target: Path) -> Iterator[LocalFile]:
    """Opens the place of a video, making its folder; raises OutputError when it cannot be written.

    Without a commit nothing stays: neither the unfinished file nor a folder made for it.
    """
    made = _missing_folders(target)
    try:
        with ExitStack() as opened:
            with _told(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    target.lstat()  # says now, not after the render, that the name is too long
                unfinished = opened.enter_context(unfinished_in(target.parent))
            yield LocalFile(target, unfinished)
    finally:
        _remove_if_empty(made)


def _missing_folders(target: Path) -> list[Path]:
    """Returns the folders that do not exist yet, innermost first; refuses a target that is no place for a file."""
    with _told(target):  # a part of the path may be too long, or may not be looked at
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "not a regular file"
            raise OutputError(f'"{target}" is {kind}', remedy="name a file, for example video.mp4", param="out")
        missing = [folder for folder in target.parents if not folder.exists()]
        ground = target.parents[len(missing)]
        if not ground.is_dir():
            raise OutputError(f'"{ground}" is not a folder', remedy="choose a folder for the video", param="out")
        return missing


def _remove_if_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it was never made, or holds the committed video or something of another process
            folder.rmdir()


@contextmanager
def _told(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f'"{target}" cannot be written: {error.strerror}',
            remedy="choose a folder that is writable and has free space",
            param="out",
        ) from error
