"""Manifests: what a bulk run shall render, row by row, from a file or a folder, here or in a bucket.

A manifest that is none as a whole is an error; a row that is none is a BadRow among the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from serve_app.bulk.manifests.files import ENDINGS, ManifestFile, read_file
from serve_app.bulk.manifests.folders import (
    AUDIO_ENDINGS,
    AUDIO_PLACEHOLDERS,
    IMAGE_ENDINGS,
    AudioFolder,
    TaskFolder,
    is_named,
    read_audio_folder,
    read_task_folder,
)
from serve_app.bulk.manifests.names import check_template
from serve_app.bulk.manifests.watch import AudioWatch, TaskWatch, Watch
from serve_app.bulk.row import BadRow, Document, Entry
from serve_app.errors import InputNotFoundError, InvalidRequestError, shown
from serve_app.storage.folders import is_remote, open_folder, split_uri

ManifestSource = ManifestFile | TaskFolder | AudioFolder
DEFAULT_NAME = "{stem}"


def find_manifest(where: str) -> ManifestFile | TaskFolder:
    """Returns the manifest at a path or an s3:// address: a file, known by its ending, or a folder of task files.

    Raises InputNotFoundError where there is nothing, as far as this machine knows (a bucket is asked only when the
    manifest is read), and InvalidRequestError for a file of another kind.
    """
    if _is_folder(where, ENDINGS, param="manifest"):
        return TaskFolder(open_folder(where))
    if not is_named(where, ENDINGS):
        raise InvalidRequestError(
            f"manifest {shown(where)} is of no known kind",
            remedy=f"name a file that ends in {', '.join(ENDINGS)}, or a folder of task files",
            param="manifest",
        )
    folder, name = split_uri(where)
    return ManifestFile(open_folder(folder), name)


def find_audios(audio_dir: str, *, image: str, name: str = DEFAULT_NAME, fields: Document) -> AudioFolder:
    """Returns the manifest that a folder of sounds is, with a portrait or a folder of portraits.

    `name` makes the ids; `fields` are those of every row: prompt, preset, ... Raises InvalidRequestError for a name
    with placeholders that there are not, InputNotFoundError as `find_manifest` does.
    """
    template = check_template(name, known=AUDIO_PLACEHOLDERS)
    if not _is_folder(audio_dir, (), param="audio_dir"):
        raise InvalidRequestError(
            f"audio_dir {shown(audio_dir)} is no folder",
            remedy="name the folder that the sounds are in",
            param="audio_dir",
        )
    if _is_folder(image, IMAGE_ENDINGS, param="image"):
        return AudioFolder(open_folder(audio_dir), open_folder(image), template, fields)
    portrait = image if is_remote(image) else str(Path(image).absolute())
    return AudioFolder(open_folder(audio_dir), portrait, template, fields)


def read_manifest(source: ManifestSource) -> Iterator[Entry | BadRow]:
    """Yields the rows of a manifest as they are read, none of them held.

    Raises, with the first row or between two, InvalidRequestError when it is none as a whole or has no row,
    InputNotFoundError when it is not there, StorageError when its place does not answer.
    """
    is_empty = True
    for row in _rows(source):
        is_empty = False
        yield row
    if is_empty:
        raise _no_rows(source)


def watch_manifest(source: ManifestSource, *, seen: Collection[str] = ()) -> Watch:
    """Returns the watch over a folder; raises InvalidRequestError for a manifest in a file, which does not grow.

    `seen` are names of files that need not be told.
    """
    match source:
        case ManifestFile():
            raise InvalidRequestError(
                f"the manifest {source.where} is a file, and only a folder can be watched",
                remedy="leave out --watch, or name a folder of task files, or give --audio-dir",
                param="watch",
            )
        case TaskFolder():
            return TaskWatch(source, seen=seen)
        case AudioFolder():
            return AudioWatch(source, seen=seen)


def _rows(source: ManifestSource) -> Iterator[Entry | BadRow]:
    match source:
        case ManifestFile():
            return read_file(source)
        case TaskFolder():
            return read_task_folder(source)
        case AudioFolder():
            return read_audio_folder(source)


def _no_rows(source: ManifestSource) -> InvalidRequestError:
    match source:
        case ManifestFile():
            what, remedy = f"the manifest {source.where} has no rows", "write one row for each video"
        case TaskFolder():
            what, remedy = f'"{source.folder.uri()}" has no task_*.json', "put a task file for each video there"
        case AudioFolder():
            endings = ", ".join(AUDIO_ENDINGS)
            what, remedy = f'"{source.audios.uri()}" has no sound', f"put files there that end in {endings}"
    return InvalidRequestError(what, remedy=remedy, param="manifest")


def _is_folder(where: str, endings: Collection[str], *, param: str) -> bool:
    """Says whether a path or address is a folder and not a file; in a bucket the ending has to tell."""
    if is_remote(where):
        return not is_named(where, endings)
    with suppress(OSError):  # too long, or not to be looked at
        if Path(where).is_dir():
            return True
        if Path(where).is_file():
            return False
    raise InputNotFoundError(
        f"{param} {shown(where)} is neither a file nor a folder",
        remedy="name one that exists and may be read",
        param=param,
    )
