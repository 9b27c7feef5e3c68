"""A folder that is watched: what is new in it becomes a row once it is whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Protocol

from serve_app.bulk.manifests.folders import (
    AudioFolder,
    Portraits,
    TaskFolder,
    audio_files,
    by_stem,
    image_files,
    pairing_stem,
    read_audio,
    read_task,
    task_files,
)
from serve_app.bulk.row import BadRow, Entry
from serve_app.storage.base import Listed


class Watch(Protocol):
    """Looks at a folder whenever it is asked to.

    A file is taken, once, when it is not empty and two looks one after the other find it the same, so that nothing is
    taken that is still being copied. What is written to it later is not looked at.
    """

    def poll(self) -> Iterator[Entry | BadRow]:
        """Looks, and yields what is new and whole, by name; raises StorageError.

        What nobody drew from it, also because of an error, the next one finds again.
        """
        ...

    def left(self) -> list[BadRow]:
        """Returns what the last look found whole and yet not complete, for the report of a watch that ends."""
        ...


class TaskWatch:
    """Takes task files; what they name should be in its place before them. `seen`: names that are not taken."""

    def __init__(self, source: TaskFolder, *, seen: Collection[str] = ()) -> None:
        self._source = source
        self._files = _NewFiles(seen)

    def poll(self) -> Iterator[Entry | BadRow]:
        for file in self._files.look(task_files(self._source.folder)):
            row = read_task(file, self._source, self._files.next_number)
            self._files.take(file)
            yield row

    def left(self) -> list[BadRow]:
        return []


class AudioWatch:
    """Takes sounds, each when its portrait is whole too. `seen`: names that are not taken."""

    def __init__(self, source: AudioFolder, *, seen: Collection[str] = ()) -> None:
        self._source = source
        self._audios = _NewFiles(seen)
        self._images = _NewFiles(())
        self._unpaired: list[Listed] = []

    def poll(self) -> Iterator[Entry | BadRow]:
        portraits = self._portraits()
        audios = self._audios.look(audio_files(self._source.audios))
        paired: list[Listed] = []
        self._unpaired = []
        for file in audios:
            is_paired = portraits is None or pairing_stem(file.name) in portraits
            (paired if is_paired else self._unpaired).append(file)
        for file in paired:
            yield read_audio(file, self._source, portraits or {}, self._audios.take(file))

    def left(self) -> list[BadRow]:
        rows = [read_audio(file, self._source, {}, self._audios.take(file)) for file in self._unpaired]
        return [row for row in rows if isinstance(row, BadRow)]

    def _portraits(self) -> Portraits | None:
        """Returns the pictures that are whole; None where one portrait is for all."""
        folder = self._source.portrait
        return None if isinstance(folder, str) else by_stem(self._images.look(image_files(folder)))


class _NewFiles:
    """Tells which files are new, and the same as a look before."""

    def __init__(self, seen: Collection[str]) -> None:
        self._taken = set(seen)
        self._last: dict[str, Listed] = {}
        self._number = 0

    @property
    def next_number(self) -> int:
        """How many files are taken with the next one."""
        return self._number + 1

    def look(self, files: Iterable[Listed]) -> list[Listed]:
        """Returns the files that are whole and not taken."""
        now = {file.name: file for file in files if file.num_bytes and file.name not in self._taken}
        whole = [file for name, file in now.items() if self._last.get(name) == file]
        self._last = now
        return whole

    def take(self, file: Listed) -> int:
        """Notes that a file need not be told again, and returns how many were taken so far."""
        self._taken.add(file.name)
        self._number += 1
        return self._number
