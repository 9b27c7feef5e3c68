"""Rows of a manifest, as values: what its author wrote, or why it cannot be understood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.bulk.outcomes import RowError

Document = Mapping[str, Any]
"""A JSON object."""


@dataclass(frozen=True)
class Entry:
    """One row that can be understood; whether its values keep the rules is for `bulk.checking` to say.

    `number` is its line (JSONL, CSV), row (Parquet) or place among the files of a folder, from 1. `fields` are those
    of a render (`schemas.request.REQUEST_FIELDS`), flat; `defaults` are settings that give way to them, to their preset
    and to what the run sets, as `schemas.request.complete` takes them: a row's `seconds` is `max_seconds` there, as in
    the API, and task files have a `num_clip` there.
    Relative inputs resolve against `base`, a folder of this machine or an s3:// prefix. `original` is the row as
    written, for errors.jsonl.
    """

    number: int
    custom_id: str
    fields: Document
    original: Document
    base: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    defaults: Document = field(default_factory=dict)


@dataclass(frozen=True)
class BadRow:
    """A row that will not be rendered, and why. What is no JSON object stands in `original` as {"raw": text}.

    With `base` the row means the same inputs when it is submitted again; "": what the row itself says there is wrong.
    """

    number: int
    original: Document
    base: str
    error: RowError
    custom_id: str = ""

    def as_json(self) -> dict[str, Any]:
        """Returns the line of errors.jsonl: a manifest's row again, with its error."""
        where = {"base": self.base} if self.base else {}
        return {**self.original, **where, "line": self.number, "error": self.error.as_json()}
