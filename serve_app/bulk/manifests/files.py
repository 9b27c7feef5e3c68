"""Manifests of one file: JSON Lines, CSV, Parquet. They are read row by row, whatever their length."""

from __future__ import annotations

import codecs
import csv
import json
import math
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from serve_app.bulk.manifests.rows import (
    ENVELOPE_FIELDS,
    METADATA_PREFIX,
    RESUBMITTED_FIELDS,
    ROW_FIELDS,
    Place,
    base_of,
    read_row,
    unknown_field,
)
from serve_app.bulk.row import BadRow, Entry
from serve_app.errors import InvalidRequestError, shown
from serve_app.rendering.task_file import NoObjectError, parse_object
from serve_app.storage.base import Folder

if TYPE_CHECKING:
    from pyarrow import RecordBatch

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
ENDINGS = (*JSON_ENDINGS, ".csv", ".parquet")
MAX_LINE_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 17
"""Of a row of CSV over several lines; where a quote stays open, so much is read once more for each line."""
_SHOWN_BYTES = 1_000
"""So much of a line that is too long stands in the report."""
_HEAD_BYTES = 1 << 10
_DELIMITERS = ",;\t"
"""Spreadsheets write what their country does."""
_ROWS_AT_ONCE = 32
"""Of Parquet: a text that many rows share is in the file once, and in memory for each of so many."""
_NO_CELL = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What a cell raises that cannot be JSON: pyarrow's own errors are among them, and those of Python's calendar."""


@dataclass(frozen=True)
class ManifestFile:
    """A manifest in one file, directly in `folder`."""

    folder: Folder
    name: str

    @property
    def where(self) -> str:
        """The file, as messages name it."""
        return f'"{self.folder.uri(self.name)}"'

    @cached_property
    def base(self) -> str:
        """What relative inputs resolve against."""
        return base_of(self.folder)

    def place(self, number: int) -> Place:
        """Returns where a row stands."""
        return Place(number, self.base)


def read_file(source: ManifestFile) -> Iterator[Entry | BadRow]:
    """Yields the rows of a manifest; raises InvalidRequestError when it is none as a whole."""
    with source.folder.open(source.name) as file:
        match PurePosixPath(source.name).suffix.lower():
            case ".parquet":
                yield from _parquet(source, file)
            case ".csv":
                _check_text(source, file)
                yield from _csv(source, file)
            case _:
                _check_lines_of_json(source, _check_text(source, file))
                yield from _json_lines(source, file)


@dataclass(frozen=True)
class _Line:
    """A line of a text file, its end too; of one that is too long, the beginning."""

    number: int
    content: bytes

    @property
    def is_too_long(self) -> bool:
        return len(self.content) > MAX_LINE_BYTES

    @property
    def is_blank(self) -> bool:
        return not self.content.removeprefix(codecs.BOM_UTF8).strip()

    @property
    def text(self) -> str:
        """The line as a report shows it."""
        whole = self.content[:_SHOWN_BYTES] if self.is_too_long else self.content
        return whole.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace").rstrip("\r\n")


def _lines(file: BinaryIO) -> Iterator[_Line]:
    number = 0
    while content := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        yield _Line(number, content)
        rest = content
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)


def _too_long(number: int, *, max_bytes: int = MAX_LINE_BYTES) -> str:
    return f"the row at line {number} has more than {max_bytes} bytes; keep files out of the manifest"


def _check_text(source: ManifestFile, file: BinaryIO) -> bytes:
    """Returns the beginning of a file; refuses what is no text in UTF-8 at all. Single lines are judged one by one."""
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if b"\0" in head or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _no_manifest(f"{source.where} is not text in UTF-8", "save it as UTF-8, not UTF-16, and not compressed")
    return head


def _check_lines_of_json(source: ManifestFile, head: bytes) -> None:
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"[") or re.match(rb"\{\s*\n", start):
        raise _no_manifest(
            f"{source.where} does not have one JSON object on each line",
            "write it as JSON Lines; for task files, name their folder",
        )


def _json_lines(source: ManifestFile, file: BinaryIO) -> Iterator[Entry | BadRow]:
    return (_json_row(line, source.place(line.number)) for line in _lines(file) if not line.is_blank)


def _json_row(line: _Line, place: Place) -> Entry | BadRow:
    if line.is_too_long:
        return place.bad(_too_long(line.number), original={"raw": line.text})
    try:
        return read_row(parse_object(line.content), place)
    except NoObjectError as error:
        # Each line is a text of its own to the parser, and so always its line 1.
        said = str(error).replace("line 1 column", "column")
        return place.bad(f"the line {said}; write one JSON object per line", original={"raw": line.text})


def _csv(source: ManifestFile, file: BinaryIO) -> Iterator[Entry | BadRow]:
    lines = _lines(file)
    header = next((line for line in lines if not line.is_blank), None)
    if header is None:
        return
    delimiter, columns = _header(source, header)
    feed = _Feed(lines)
    # strict: a quote that is never closed is an error, not a cell with half of the manifest in it.
    reader = csv.reader(feed, delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        feed.forget()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _TooLongError as error:
            message = _too_long(feed.number, max_bytes=error.max_bytes)
            yield source.place(feed.number).bad(message, original={"raw": feed.give_back()})
        except csv.Error as error:
            message = f"the line is no CSV ({error}); put a text in quotes, and write a quote inside it twice"
            yield source.place(feed.number).bad(message, original={"raw": feed.give_back()})
        else:
            if any(cell.strip() for cell in cells):
                yield _csv_row(columns, cells, feed, source)


def _csv_row(columns: Sequence[str], cells: Sequence[str], feed: _Feed, source: ManifestFile) -> Entry | BadRow:
    place = source.place(feed.number)
    if not feed.is_utf8:
        return place.bad("the line is not UTF-8; save the manifest as UTF-8", original={"raw": feed.text})
    if len(cells) != len(columns):
        message = (
            f"the line has {len(cells)} cells, the header {len(columns)}; put a text with commas in quotes, "
            "and write empty cells too"
        )
        return place.bad(message, original={"raw": feed.text})
    written = zip(columns, (cell.strip() for cell in cells), strict=True)
    return read_row({column: cell for column, cell in written if cell}, place)


def _header(source: ManifestFile, line: _Line) -> tuple[str, list[str]]:
    """Returns the delimiter and the columns."""
    try:
        text = line.content.removeprefix(codecs.BOM_UTF8).decode()
        # With a delimiter that is not the file's, even a good header may have odd quotes.
        delimiter = next((one for one in _DELIMITERS if "custom_id" in _columns(text, one, is_strict=False)), ",")
        columns = _columns(text, delimiter, is_strict=True)
    except (UnicodeDecodeError, csv.Error) as error:
        raise _no_manifest(
            f"the header of {source.where} is no CSV in UTF-8 ({error})", "name the columns in its first line"
        ) from error
    _check_columns(source, columns)
    return delimiter, columns


def _columns(text: str, delimiter: str, *, is_strict: bool) -> list[str]:
    cells = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True, strict=is_strict))
    return [cell.strip() for cell in cells]


def _check_columns(source: ManifestFile, columns: Sequence[str]) -> None:
    if "custom_id" not in columns:
        raise _no_manifest(
            f"{source.where} has no column custom_id; it has {shown(columns)}",
            "name the columns in its first line, and give each row an id of its own",
        )
    for column, times in Counter(columns).items():
        if column and times > 1:
            raise _no_manifest(f"{source.where} has the column {shown(column)} {times} times", "leave one of them out")
        known = column in (*ROW_FIELDS, *ENVELOPE_FIELDS, *RESUBMITTED_FIELDS, "")
        if not known and not column.startswith(METADATA_PREFIX):
            error = unknown_field(column)
            raise _no_manifest(f"{source.where} has a column too many: {error.message}", error.remedy)


class _TooLongError(Exception):
    """Stops the reader of CSV in a row that is too long to be held."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self.max_bytes = max_bytes


class _Feed:
    """Gives lines to the reader of CSV, and remembers those of the row that it is in."""

    def __init__(self, lines: Iterator[_Line]) -> None:
        self._lines = lines
        self._again: deque[_Line] = deque()
        self._held: list[_Line] = []
        self._num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._held.append(line)
        self._num_bytes += len(line.content)
        max_bytes = MAX_LINE_BYTES if len(self._held) == 1 else MAX_RECORD_BYTES
        if self._num_bytes > max_bytes:
            raise _TooLongError(max_bytes)
        return line.content.decode("utf-8", "surrogateescape")

    def forget(self) -> None:
        """Begins a row."""
        self._held.clear()
        self._num_bytes = 0

    def give_back(self) -> str:
        """Returns the first line of a row that is none, and has the others read again, as rows of their own."""
        first, *others = self._held
        self._again.extendleft(reversed(others))
        return first.text

    @property
    def number(self) -> int:
        return self._held[0].number

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self._held)

    @property
    def is_utf8(self) -> bool:
        try:
            b"".join(line.content for line in self._held).decode()
        except UnicodeDecodeError:
            return False
        return True


def _parquet(source: ManifestFile, file: BinaryIO) -> Iterator[Entry | BadRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise _no_manifest(
            f"{source.where} needs pyarrow ({error})", "install live-avatar-serve[bulk], or write JSON Lines"
        ) from error
    number = 0
    try:
        table = parquet.ParquetFile(file)
        _check_columns(source, table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
            rows = _together(batch)
            for index in range(batch.num_rows):
                number += 1
                place = source.place(number)
                yield _alone(batch.slice(index, 1), place) if rows is None else read_row(rows[index], place)
    # UnicodeDecodeError: the name of a column is not UTF-8, which the format does not allow.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _no_manifest(
            f"{source.where} cannot be read as Parquet behind row {number} ({error})", "write it anew"
        ) from error


def _together(batch: RecordBatch) -> list[dict[str, Any]] | None:
    """Returns the rows of a batch, several times as fast as one by one; None where one may be too long, or bad."""
    if batch.nbytes > MAX_LINE_BYTES:
        return None
    try:
        return [_cells(row) for row in batch.to_pylist()]
    except _NO_CELL:
        return None


def _alone(row: RecordBatch, place: Place) -> Entry | BadRow:
    """Understands a batch of one row, whatever is in it."""
    cells: dict[str, Any] = {}
    wrong: list[str] = []
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            cell = _cell(column[0].as_py())
        except _NO_CELL as error:
            wrong.append(f"{shown(name)}, of type {shown(str(column.type))}, cannot be understood ({error})")
            cell = [str(error)]  # no field takes a list: submitted again as it is, the row is refused again
        if cell is not None:
            cells[name] = cell
    line = _Line(place.number, json.dumps(cells, ensure_ascii=False).encode())
    if line.is_too_long:
        return place.bad(_too_long(line.number), original={"raw": line.text})
    if wrong:
        return place.bad(f"{'; '.join(wrong)}; write text or numbers there", original=cells)
    return read_row(cells, place)


def _cells(row: Mapping[str, object]) -> dict[str, Any]:
    return {column: cell for column, value in row.items() if (cell := _cell(value)) is not None}


def _cell(value: object) -> object:
    """Returns a cell as JSON has it; None, no number at all, and what is empty stand for nothing.

    Raises one of _NO_CELL for a text that is not UTF-8, and for a map that is no JSON object.
    """
    match value:
        case None | str() | bool() | int():
            return value
        case dict():
            return _cells(value)
        case []:  # a map without keys looks like that, too; and no field takes a list
            return None
        case [tuple(), *_]:
            return _cells(_from_map(value))
        case list():
            return [_cell(one) for one in value]
        case float():
            if math.isnan(value):
                return None
            return value if math.isfinite(value) else str(value)
        case bytes():  # what writers without a type for text call it
            return value.decode()
        case _:  # moments, decimals: no field takes them
            return str(value)


def _from_map(pairs: Sequence[Any]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        name = _cell(key)
        if not isinstance(name, str | int | float):
            raise TypeError(f"its key {shown(key)} is no text")
        if str(name) in found:
            raise ValueError(f"its key {shown(name)} is there twice")
        found[str(name)] = value
    return found


def _no_manifest(message: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(message, remedy=remedy, param="manifest")
