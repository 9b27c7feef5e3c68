"""Manifests that are folders: of task files, one video each, and of voices that get a portrait and a sentence."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from serve_app.bulk.manifests.names import archive_name, stem_of
from serve_app.bulk.manifests.rows import Place, base_of, read_row
from serve_app.bulk.outcomes import Code
from serve_app.bulk.row import BadRow, Document, Entry
from serve_app.rendering.task_file import MAX_BYTES, NoObjectError, parse_object
from serve_app.storage.base import Folder, Listed
from serve_app.storage.folders import join

TASK_PREFIX = "task_"
TASK_ENDING = ".json"
AUDIO_ENDINGS = (".wav", ".mp3", ".m4a", ".flac", ".ogg", ".opus", ".aac")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
AUDIO_PLACEHOLDERS = ("stem", "image_stem", "number")
"""What a name can be made of where it becomes the id."""


@dataclass(frozen=True)
class TaskFolder:
    """The task_*.json directly in `folder`."""

    folder: Folder

    @cached_property
    def base(self) -> str:
        """What relative inputs resolve against."""
        return base_of(self.folder)

    def place(self, number: int) -> Place:
        """Returns where a row stands."""
        return Place(number, self.base)


@dataclass(frozen=True)
class AudioFolder:
    """One video for each sound directly in `audios`.

    `portrait` is the address of one for all, or a folder in which each sound has one of its own name. `name` is
    the checked template of ids, of AUDIO_PLACEHOLDERS. `fields` (prompt, preset, ...) are those of every row.
    """

    audios: Folder
    portrait: str | Folder
    name: str
    fields: Document

    @cached_property
    def base(self) -> str:
        """What relative inputs resolve against."""
        return base_of(self.audios)

    def place(self, number: int) -> Place:
        """Returns where a row stands."""
        return Place(number, self.base)


Portraits = Mapping[str, tuple[str, ...]]
"""Names of pictures, by the stem that they share with a sound."""


def read_task_folder(source: TaskFolder) -> Iterator[Entry | BadRow]:
    """Yields the videos of a folder of task files, by name."""
    for number, file in enumerate(task_files(source.folder), start=1):
        yield read_task(file, source, number)


def task_files(folder: Folder) -> Iterator[Listed]:
    """Yields the task files of a folder, by name."""
    return (file for file in _directly_in(folder, TASK_PREFIX) if file.name.endswith(TASK_ENDING))


def read_task(file: Listed, source: TaskFolder, number: int) -> Entry | BadRow:
    """Reads one task file; its name without the ending is the id of its video."""
    place = source.place(number)
    row = {"task_file": file.name}
    if file.num_bytes > MAX_BYTES:
        message = f'"{file.name}" has {file.num_bytes} bytes; a task file has {MAX_BYTES} at most'
        return place.bad(message, original=row)
    stored = source.folder.read(file.name)
    if stored is None:
        message = f'"{file.name}" was there, and is gone; put it there again'
        return place.bad(message, original=row, code=Code.INPUT_MISSING)
    try:
        return read_row({**parse_object(stored.content), **row}, place)
    except NoObjectError as error:
        text = stored.content.decode("utf-8-sig", "replace")
        return place.bad(f'"{file.name}" {error}; write one JSON object', original={**row, "raw": text})


def read_audio_folder(source: AudioFolder) -> Iterator[Entry | BadRow]:
    """Yields a video for each sound of a folder, by name."""
    portraits = {} if isinstance(source.portrait, str) else by_stem(image_files(source.portrait))
    for number, file in enumerate(audio_files(source.audios), start=1):
        yield read_audio(file, source, portraits, number)


def audio_files(folder: Folder) -> Iterator[Listed]:
    """Yields the sounds of a folder, by name."""
    return (file for file in _directly_in(folder) if is_named(file.name, AUDIO_ENDINGS))


def image_files(folder: Folder) -> Iterator[Listed]:
    """Yields the pictures of a folder, by name."""
    return (file for file in _directly_in(folder) if is_named(file.name, IMAGE_ENDINGS))


def is_named(name: str, endings: Iterable[str]) -> bool:
    """Says whether a file's name has one of some endings, in letters of any case."""
    return PurePosixPath(name).suffix.lower() in endings


def by_stem(pictures: Iterable[Listed]) -> Portraits:
    """Returns pictures by the stem that sounds are paired by."""
    found: dict[str, tuple[str, ...]] = {}
    for picture in pictures:
        stem = pairing_stem(picture.name)
        found[stem] = (*found.get(stem, ()), picture.name)
    return found


def pairing_stem(name: str) -> str:
    """Returns a stem that is the same however a file system writes accents."""
    return unicodedata.normalize("NFC", stem_of(name))


def read_audio(file: Listed, source: AudioFolder, portraits: Portraits, number: int) -> Entry | BadRow:
    """Returns the row of one sound; without a portrait of its name, or with several, one that is refused."""
    place = source.place(number)
    if isinstance(source.portrait, str):
        return read_row(_audio_row(file, source, source.portrait, number), place)
    stem = stem_of(file.name)
    found = portraits.get(pairing_stem(file.name), ())
    # Where there is none, its likeliest name stands in the report: once it is there, the row can be submitted again.
    image = join(base_of(source.portrait), found[0] if found else stem + IMAGE_ENDINGS[0])
    row = _audio_row(file, source, image, number)
    if len(found) == 1:
        return read_row(row, place)
    if found:
        message = f'"{file.name}" has more than one image: {", ".join(found)}; leave one of them'
        return place.bad(message, original=row)
    looked_for = ", ".join(stem + ending for ending in IMAGE_ENDINGS)
    message = f'"{file.name}" has no image; looked for {looked_for} in "{source.portrait.uri()}"; put one there'
    return place.bad(message, original=row, code=Code.INPUT_MISSING)


def _audio_row(file: Listed, source: AudioFolder, image: str, number: int) -> Document:
    custom_id = archive_name(source.name, number=number, audio=file.name, image=image)
    audio = join(source.base, file.name)
    return {"custom_id": custom_id, "image": image, "audio": audio, **source.fields}


def _directly_in(folder: Folder, prefix: str = "") -> Iterator[Listed]:
    """Yields the files of a folder, not those of its folders, nor those that hide themselves."""
    return (file for file in folder.list(prefix, is_deep=False) if not file.name.startswith("."))
