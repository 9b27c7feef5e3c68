"""One row of a manifest, in whatever form it is written, becomes an Entry, or a BadRow that says why it cannot.

A row is flat, or the envelope of OpenAI's batches around the body of POST /v1/videos. A line of errors.jsonl is a row
too: it has a `base` of its own, `task_file` where it was one, and what was no JSON object stands in it as `raw`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field, ValidationError

from serve_app.bulk.manifests.names import check_custom_id, stem_of
from serve_app.bulk.outcomes import Code, RowError
from serve_app.bulk.row import BadRow, Document, Entry
from serve_app.errors import InvalidRequestError, did_you_mean, shown
from serve_app.rendering.task_file import INPUT_FOLDERS, NoObjectError, parse_object
from serve_app.schemas.config import Frozen
from serve_app.schemas.render import Seconds, invalid_field
from serve_app.schemas.request import REQUEST_FIELDS
from serve_app.schemas.video import (
    MAX_METADATA,
    AudioReference,
    ImageReference,
    MetadataKey,
    MetadataValue,
    VideoCreate,
)
from serve_app.storage.base import Folder
from serve_app.storage.folders import is_remote, join

ROW_FIELDS = ("custom_id", *REQUEST_FIELDS, "seconds", "metadata")
"""Of a flat row; metadata may also be written one by one, as "metadata.KEY"."""
METADATA_PREFIX = "metadata."
ENVELOPE_FIELDS = ("method", "url", "body")
RESUBMITTED_FIELDS = ("base", "line", "error", "raw", "task_file")
"""What errors.jsonl adds to a row, or has in its place."""
TASK_NUM_CLIP = 50
"""Of a task file that says nothing else: what the scripts that task files were made for begin with."""
ENDPOINT = "/v1/videos"
_NOT_IN_BULK: Mapping[str, str] = MappingProxyType(
    {
        "model": "leave it out: the checkpoint of the run makes all of its videos",
        "user": "leave it out, or write it into metadata",
        "deadline_s": "leave it out: a run promises no time",
        "priority": "leave it out: a run renders the longest row first",
        "accept_alternatives": "leave it out: a row is rendered as it is written, or not at all",
        "webhook_url": "leave it out, and follow the run with live-avatar bulk status",
    }
)
_ADDRESS = re.compile(r"data:|([A-Za-z][A-Za-z0-9+.-]+)://", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where a row stands: its number, and the folder that its relative inputs resolve against."""

    number: int
    base: str

    def bad(self, message: str, *, original: Document, code: Code = Code.ROW_INVALID) -> BadRow:
        """Returns the report of a row that is refused here."""
        return BadRow(
            number=self.number,
            original=original,
            base=self.base,
            error=RowError(code, message, "inputs" if code is Code.INPUT_MISSING else "manifest"),
            custom_id=_legal_id(original),
        )


class _Labels(Frozen):
    seconds: Seconds | None = None
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=MAX_METADATA)


@dataclass(frozen=True)
class _Wanted:
    fields: Document
    seconds: object
    metadata: Mapping[str, str]


def base_of(folder: Folder) -> str:
    """Returns what relative inputs of a manifest in `folder` resolve against, the same from any working directory."""
    uri = folder.uri()
    return uri if is_remote(uri) else str(Path(uri).absolute())


def read_row(written: Document, place: Place) -> Entry | BadRow:
    """Understands a row; what errors.jsonl said of it is dropped."""
    original = {name: value for name, value in written.items() if name not in ("line", "error")}
    try:
        return _entry(original, place)
    except InvalidRequestError as error:
        return _resolved(place, original).bad(str(error), original=original)


def is_envelope(row: Document) -> bool:
    """Says whether a row is written as OpenAI's batches are."""
    return any(name in row for name in ENVELOPE_FIELDS)


def _entry(original: Document, place: Place) -> Entry:
    row = {name: value for name, value in _unpacked(original).items() if value is not None}
    base = _base(row.pop("base", ""), place)
    task_file = row.pop("task_file", "")
    custom_id = _custom_id(row.pop("custom_id", None), task_file)
    wanted = _of_envelope(row) if is_envelope(row) else _of_flat(row)
    for name in INPUT_FOLDERS:
        _check_address(name, wanted.fields.get(name))
    return Entry(
        number=place.number,
        custom_id=custom_id,
        fields=wanted.fields,
        original=original,
        base=base,
        metadata=wanted.metadata,
        defaults={
            **({"num_clip": TASK_NUM_CLIP} if task_file else {}),
            **({} if wanted.seconds is None else {"max_seconds": wanted.seconds}),
        },
    )


def _custom_id(written: object, task_file: object) -> str:
    """Returns the id of a row; that of a task file is its name."""
    if not task_file:
        return check_custom_id(written)
    custom_id = check_custom_id(stem_of(str(task_file)))
    if written not in (None, custom_id):
        raise _invalid(
            "custom_id", written, f'is not the name of its task file, "{task_file}"', "leave it out, or rename the file"
        )
    return custom_id


def _base(written: object, place: Place) -> str:
    if not isinstance(written, str):
        raise _invalid("base", written, "is no folder", "write the path of a folder, or an s3:// address")
    if not written:
        return place.base
    _check_address("base", written)
    return join(place.base, written)


def _resolved(place: Place, original: Document) -> Place:
    """Returns the place with the base that the row names itself: "" where that is none."""
    written = original.get("base")
    try:
        return replace(place, base=_base("" if written is None else written, place))
    except InvalidRequestError:
        return replace(place, base="")


def _unpacked(row: Document) -> Document:
    """Returns a row, or the one that stands in its text `raw`."""
    if "raw" not in row:
        return row
    text = row["raw"]
    beside = {name: value for name, value in row.items() if name != "raw"}
    for name in beside:
        if name not in ("base", "task_file"):
            raise _invalid(name, row[name], "stands beside raw", "leave out raw, or what is beside it")
    remedy = "write the row itself in place of raw"
    if not isinstance(text, str):
        raise _invalid("raw", text, "is no text", remedy)
    if "\ufffd" in text:
        raise _invalid("raw", text, "has lost letters: it was not UTF-8", remedy)
    try:
        return {**parse_object(text), **beside}
    except NoObjectError as error:
        raise InvalidRequestError(f"raw {error}", remedy=remedy, param="raw") from error


def _of_flat(row: Document) -> _Wanted:
    fields = {}
    for name, value in row.items():
        if name in REQUEST_FIELDS:
            fields[name] = _guide_scale(value) if name == "sample_guide_scale" else value
        elif name not in ROW_FIELDS and not name.startswith(METADATA_PREFIX):
            raise unknown_field(name)
    labels = _labels({"seconds": row.get("seconds"), "metadata": _metadata(row)})
    return _Wanted(fields=fields, seconds=labels.seconds, metadata=labels.metadata)


def unknown_field(name: str) -> InvalidRequestError:
    """Returns the error for a field that a flat row does not have."""
    if name in _NOT_IN_BULK:
        return _not_in_bulk(name)
    return InvalidRequestError(
        f"{shown(name)} is not a field of a row{did_you_mean(name, ROW_FIELDS)}",
        remedy=f"leave it out, or call it {METADATA_PREFIX}NAME; fields are {', '.join(ROW_FIELDS)}",
        param=name,
    )


def _guide_scale(value: object) -> object:
    """Returns a scale of 0 as a number: tables write it as 0.0."""
    return 0 if value == "0.0" else value


def _metadata(row: Document) -> object:
    """Returns `metadata`, or the text of JSON in its place, together with the fields metadata.KEY."""
    whole = row.get("metadata", {})
    if isinstance(whole, str):
        try:
            whole = parse_object(whole)
        except NoObjectError as error:
            raise InvalidRequestError(
                f"metadata {shown(whole)} {error}", remedy='write it like {"campaign": "spring"}', param="metadata"
            ) from error
    apart = {
        name.removeprefix(METADATA_PREFIX): value for name, value in row.items() if name.startswith(METADATA_PREFIX)
    }
    if not apart or not isinstance(whole, Mapping):
        return whole
    for key in apart.keys() & whole.keys():
        raise _invalid(f"{METADATA_PREFIX}{key}", apart[key], "stands in metadata too", "write it once")
    return {**whole, **apart}


def _labels(written: Document) -> _Labels:
    try:
        return _Labels.model_validate(written)
    except ValidationError as error:
        raise invalid_field(error, known=_Labels.model_fields) from error


def _of_envelope(row: Document) -> _Wanted:
    for name in row:
        if name not in ENVELOPE_FIELDS:
            raise _invalid(name, row[name], "stands beside body", "write it into body, or a flat row without body")
    for name, rule in (("method", "POST"), ("url", ENDPOINT)):
        if row.get(name) != rule:
            raise _invalid(name, row.get(name), f"is not {rule}", f'write "{name}": "{rule}", or a flat row')
    body = row.get("body")
    if not isinstance(body, dict):
        raise _invalid("body", body, "is no JSON object", f"write what POST {ENDPOINT} takes")
    return _of_body({name: value for name, value in body.items() if value is not None})


def _of_body(body: dict[str, Any]) -> _Wanted:
    for name, value in body.items():
        if name in _NOT_IN_BULK and value is not False:
            raise _not_in_bulk(name)
    wanted = VideoCreate.from_request(body)
    fields = {name: value for name, value in body.items() if name in REQUEST_FIELDS}
    portraits = {"image_reference": wanted.image_reference, "input_reference": wanted.input_reference}
    for field, references in (("image", portraits), ("audio", {"audio_reference": wanted.audio_reference})):
        where = [_address(name, reference) for name, reference in references.items() if reference is not None]
        if len(where) != 1:
            given = "given twice" if where else "missing"
            raise InvalidRequestError(
                f"{' or '.join(references)} is {given}", remedy="give one", param=next(iter(references))
            )
        fields[field] = where[0]
    return _Wanted(fields=fields, seconds=wanted.seconds, metadata=wanted.metadata or {})


def _address(param: str, reference: ImageReference | AudioReference) -> str:
    """Returns the path or address of an input of an envelope."""
    name = "image_url" if isinstance(reference, ImageReference) else "audio_url"
    where: str | None = getattr(reference, name)
    remedy = f"put the file beside the manifest, and write its path as {name}"
    if reference.file_id is not None:
        raise _invalid(
            f"{param}.file_id", reference.file_id, "is an upload of a service, which a bulk run has not", remedy
        )
    if where is None:
        raise InvalidRequestError(f"{param} has no {name}", remedy=remedy, param=param)
    return where


def _check_address(param: str, where: object) -> None:
    """Refuses addresses that a bulk run does not read; whether `where` is one at all is for others to say."""
    found = _ADDRESS.match(where) if isinstance(where, str) else None
    if found is not None and found[0] != "s3://":
        raise _invalid(
            param,
            where,
            f"begins with {found[0]} and a bulk run reads no such address",
            "put the file beside the manifest, and write its path or an s3:// address",
        )


def _not_in_bulk(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} has no effect in a bulk run", remedy=_NOT_IN_BULK[name], param=name)


def _invalid(param: str, value: object, rule: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param} {shown(value)} {rule}", remedy=remedy, param=param)


def _legal_id(row: Document) -> str:
    try:
        return _custom_id(row.get("custom_id"), row.get("task_file"))
    except InvalidRequestError:
        return ""
