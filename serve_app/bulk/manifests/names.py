"""Names of outputs: which ones a row may choose, and how one is made of the names of its inputs."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection
from pathlib import PurePosixPath

from serve_app.errors import InvalidRequestError, did_you_mean, shown

MAX_CHARACTERS = 64
PLACEHOLDERS = ("custom_id", "stem", "image_stem", "number")
RESERVED = frozenset(
    [
        "run.json",
        "progress.json",
        "output.jsonl",
        "errors.jsonl",
        "summary.json",
        "cancel.json",
        "ledger",
        "videos",
        "logs",
    ]
)
"""What a run itself keeps in the output folder, where every row has a folder of its own."""
RESERVED_PREFIX = "ledger-"
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))]
)
"""Windows opens these instead of a file, whatever their ending is."""
_LEGAL = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_CHARACTERS}}}")
_HASH_CHARACTERS = 8
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_PADDED = re.compile(r"0[0-9]{1,2}")


def check_custom_id(written: object) -> str:
    """Returns the id of a row; raises InvalidRequestError unless it can name a folder on every file system."""
    if written is None:
        raise _bad_id("custom_id is missing", "give each row its own; its video is kept under that name")
    if isinstance(written, int) and not isinstance(written, bool) and 0 <= written < 10**MAX_CHARACTERS:
        written = str(written)  # tables know numbers as such
    if not isinstance(written, str):
        raise _bad_id(f"custom_id {shown(written)} is no text", 'write a text, for example "row-1"')
    rule = _broken_rule(written)
    if rule:
        raise _bad_id(f"custom_id {shown(written)} {rule}", f'write for example "{legal_name(written)}"')
    return written


def legal_name(text: str) -> str:
    """Returns a name that `check_custom_id` accepts, the same for the same text; what is legal stays as it is.

    Letters lose their accents, what is no ASCII letter, digit, dot or hyphen becomes "_". Where letters of other
    scripts are lost, or the name has to be cut, a hash of the whole text keeps it apart from its like.
    """
    folded = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    name = re.sub(r"[^A-Za-z0-9._-]", "_", folded.strip()).strip(".")
    if _is_taken(name):
        name = f"_{name}"
    if name and len(name) <= MAX_CHARACTERS and not _is_lossy(folded):
        return name
    return f"{name[: MAX_CHARACTERS - 1 - _HASH_CHARACTERS].rstrip('.') or '_'}-{_hash(text)}"


def check_template(template: str, *, known: Collection[str] = PLACEHOLDERS) -> str:
    """Returns a template like "{stem}_avatar" or "{number:04}-{image_stem}" as it is.

    Raises InvalidRequestError for a placeholder that is not among `known`, and when there is none.
    """
    listed = ", ".join(f"{{{name}}}" for name in known)
    if re.search(r"[{}]", _PLACEHOLDER.sub("", template)):
        raise _bad_template(f"name {shown(template)} has a brace without its other one", f"placeholders are {listed}")
    inside = _PLACEHOLDER.findall(template)
    if not inside:
        raise _bad_template(
            f"name {shown(template)} is the same for every video", f"use one or more of the placeholders {listed}"
        )
    for placeholder in inside:
        _check_placeholder(placeholder, known, listed)
    return template


def archive_name(template: str, *, number: int, audio: str, image: str, custom_id: str = "") -> str:
    """Returns the name of a row's video by a checked template; `audio` and `image` are paths or addresses."""
    values = {"custom_id": custom_id, "stem": stem_of(audio), "image_stem": stem_of(image), "number": number}

    def value(placeholder: re.Match[str]) -> str:
        name, _, padding = placeholder[1].partition(":")
        return format(values[name], padding)

    return legal_name(_PLACEHOLDER.sub(value, template))


def stem_of(where: str) -> str:
    """Returns the name of a file without its ending."""
    return PurePosixPath(where).stem


def _check_placeholder(placeholder: str, known: Collection[str], listed: str) -> None:
    name, colon, padding = placeholder.partition(":")
    if name not in known:
        raise _bad_template(
            f"name has the unknown placeholder {shown(f'{{{placeholder}}}')}{did_you_mean(name, known)}",
            f"placeholders are {listed}",
        )
    if colon and not (name == "number" and _PADDED.fullmatch(padding)):
        raise _bad_template(
            f"name has {shown(f'{{{placeholder}}}')}, and only a number can be padded", "write it like {number:04}"
        )


def _broken_rule(name: str) -> str:
    if not _LEGAL.fullmatch(name):
        return f"is not 1 to {MAX_CHARACTERS} of A-Z a-z 0-9 . _ -"
    if name.startswith(".") or name.endswith("."):
        return "begins or ends with a dot"
    return "is a name that the run or the system needs itself" if _is_taken(name) else ""


def _is_taken(name: str) -> bool:
    # Some file systems do not tell "A" from "a".
    folded = name.lower()
    return folded in RESERVED or folded.startswith(RESERVED_PREFIX) or folded.partition(".")[0] in _DEVICES


def _is_lossy(folded: str) -> bool:
    """Says whether anything but punctuation and spaces has no ASCII character of its own."""
    return any(unicodedata.category(one)[0] not in "PZ" for one in folded if not one.isascii())


def _hash(text: str) -> str:
    # The file systems of macOS write accents apart from their letters: composed, the text is the same everywhere.
    composed = unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
    return hashlib.sha256(composed).hexdigest()[:_HASH_CHARACTERS]


def _bad_id(message: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(message, remedy=remedy, param="custom_id")


def _bad_template(message: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(message, remedy=remedy, param="name")
