"""Form fields with brackets, as SDKs write nested values: `metadata[a]=1` is {"metadata": {"a": "1"}}."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from serve_app.errors import InvalidRequestError, shown

MAX_DEPTH = 3
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")
_KEY = re.compile(r"\[([^\[\]]+)\]")


def nested(pairs: Iterable[tuple[str, object]]) -> dict[str, Any]:
    """Returns form fields as the JSON object that they mean.

    Raises InvalidRequestError for brackets that do not match, lists, a field that comes twice, and one that is both
    a value and an object.
    """
    result: dict[str, Any] = {}
    for name, value in pairs:
        *path, last = _path(name)
        inside = result
        for key in path:
            inside = inside.setdefault(key, {})
            if not isinstance(inside, dict):
                raise _twice(name)
        if last in inside:
            raise _twice(name)
        inside[last] = value
    return result


def _path(name: str) -> list[str]:
    match = _NAME.fullmatch(name)
    keys = _KEY.findall(match[2]) if match else []
    if match is None or len(keys) >= MAX_DEPTH:
        raise InvalidRequestError(
            f"{shown(name)} is not the name of a form field",
            remedy="write field, field[key] or field[key][key]; there are no lists",
            param=name,
        )
    return [match[1], *keys]


def _twice(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"the field {shown(name)} comes twice", remedy="give it once", param=name)
