"""Task files: one video per JSON file, with its image and audio beside it or in the folders that users keep them in."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Never

from serve_app.errors import InputNotFoundError, InvalidRequestError, shown
from serve_app.media.files import open_input

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
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
        return parse_object(content)
    except NoObjectError as error:
        raise _no_task(f'"{path}" {error}') from error


class NoObjectError(ValueError):
    """A text is no JSON object. What it says goes on from the name of the text: "holds [], which is ..."."""


def parse_object(content: bytes | str) -> dict[str, object]:
    """Returns the JSON object that a text is; raises NoObjectError.

    What readers of JSON disagree about is refused: a field that stands twice, numbers that are none or too large.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        found = _DECODER.decode(text)
    except NoObjectError:
        raise
    # JSONDecodeError, UnicodeDecodeError and numbers of too many digits are ValueErrors.
    except (ValueError, RecursionError) as error:
        raise NoObjectError(f"is not JSON in UTF-8 ({error})") from error
    if not isinstance(found, dict):
        raise NoObjectError(f"holds {shown(found)}, which is no JSON object")
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(found):
        raise NoObjectError(f"is nested more than {MAX_DEPTH} deep")
    return found


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name, times = Counter(name for name, _ in pairs).most_common(1)[0]
        raise NoObjectError(f"has the field {shown(name)} {times} times")
    return fields


def _no_number(text: str) -> Never:
    raise NoObjectError(f"holds {text}, which is no number of JSON")


def _finite_number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise NoObjectError(f"holds {shown(text)}, which is too large a number")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_duplicates, parse_constant=_no_number, parse_float=_finite_number
)


def _is_deep(found: dict[str, object]) -> bool:
    """Says whether anything lies deeper than MAX_DEPTH. Writing it again would need as much stack as it is deep."""
    level: list[object] = [found]
    for _ in range(MAX_DEPTH):
        level = [part for one in level for part in _parts(one)]
    return bool(level)


def _parts(one: object) -> Iterable[object]:
    match one:
        case dict():
            return one.values()
        case list():
            return one
        case _:
            return ()


def _no_task(message: str) -> InvalidRequestError:
    example = '{"image": "me.png", "audio": "voice.wav", "prompt": "A woman talks.", "preset": "social"}'
    return InvalidRequestError(message, remedy=f"write one like {example}", param="task")
