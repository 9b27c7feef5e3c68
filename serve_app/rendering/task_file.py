"""Task files: one video per JSON file, with its image and audio beside it or in the folders that users keep them in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from serve_app.errors import InputNotFoundError, InvalidRequestError, shown
from serve_app.media.files import open_input

MAX_BYTES = 1_000_000
INPUT_FOLDERS = {"image": Path("inputs/images"), "audio": Path("inputs/audios")}


def read_task_file(path: Path, *, overrides: Mapping[str, object]) -> dict[str, object]:
    """Returns the fields of a task file, those of `overrides` in place of its own.

    Its image and audio are found by `locate_input`. Which fields there are, and their rules, is the affair of
    `schemas.request.complete`. Raises InputNotFoundError and UnsupportedMediaError when there is no such file or
    none of its size, InvalidRequestError when it is no JSON object.
    """
    fields = {**_parsed(path), **overrides}
    for name in INPUT_FOLDERS.keys() - overrides.keys():
        written = fields.get(name)
        if isinstance(written, str) and written:
            fields[name] = str(locate_input(written, param=name, task_folder=path.parent))
    return fields


def locate_input(written: str, *, param: str, task_folder: Path) -> Path:
    """Returns where the input of a task file is; raises InputNotFoundError that lists where it was looked for.

    An absolute path stands for itself. Any other is looked for in the folder of the task file, then in
    inputs/images or inputs/audios: of the folder above (users keep task_queue/ beside inputs/), then of the
    working directory.
    """
    folder = INPUT_FOLDERS[param]
    # Joining an absolute path to a folder gives that path.
    places = list(dict.fromkeys(base / written for base in (task_folder, task_folder / ".." / folder, folder)))
    for place in places:
        if _is_there(place):
            return place
    listed = ", ".join(f'"{place}"' for place in places)
    raise InputNotFoundError(
        f"{param} {shown(written)} of the task file is not there; looked for {listed}",
        remedy=f"put it there, or write its absolute path as {param}",
        param=param,
    )


def _is_there(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError):  # too long, not to be looked at, or no name at all
        return False


def _parsed(path: Path) -> dict[str, object]:
    with open_input(path, max_bytes=MAX_BYTES, param="task") as file:
        content = file.read()
    try:
        fields = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    # JSONDecodeError, UnicodeDecodeError and numbers of too many digits are ValueErrors.
    except (ValueError, RecursionError) as error:
        raise _no_task(f'"{path}" is not JSON in UTF-8 ({error})') from error
    if not isinstance(fields, dict):
        raise _no_task(f'"{path}" holds {shown(fields)}, which is no JSON object')
    return fields


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            raise _no_task(f"the field {shown(name)} stands {times} times in the task file")
    return dict(pairs)


def _no_task(message: str) -> InvalidRequestError:
    example = '{"image": "me.png", "audio": "voice.wav", "prompt": "A woman talks.", "preset": "social"}'
    return InvalidRequestError(message, remedy=f"write one like {example}", param="task")
