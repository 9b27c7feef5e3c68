"""RowTable: the good rows of one run, and the ids of bad ones, in a file, so that a million take no memory.

It belongs to one driver and ends with it: what survives is in the output folder.
"""

from __future__ import annotations

import enum
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from serve_app.bulk.row import Document
from serve_app.errors import OutputError

_SCHEMA = """
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    folded TEXT NOT NULL UNIQUE,
    archived TEXT UNIQUE,
    spec TEXT NOT NULL,
    origin TEXT NOT NULL,
    body_key TEXT NOT NULL,
    predicted_s REAL NOT NULL,
    num_frames INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    brought_down INTEGER NOT NULL DEFAULT 0,
    due_at REAL NOT NULL DEFAULT 0
);
CREATE INDEX in_order ON rows (state, predicted_s DESC, seq);
CREATE TABLE refused (folded TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
BEGIN;
"""
"""One transaction that never ends: nothing here outlives the process, and rows come in several times as fast."""
_INSERT = """
INSERT INTO rows (number, custom_id, folded, archived, spec, origin, body_key, predicted_s, num_frames, state)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_REFUSE = """
INSERT OR IGNORE INTO refused (folded, number)
SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM rows WHERE folded = ?)
"""


class RowState(enum.StrEnum):
    """Where a row stands. SKIPPED: an earlier run made it."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """A row that may be rendered. `spec` is a RenderSpec as JSON, its inputs as full paths or s3:// addresses.

    `origin` is what reports and lanes are told of where it comes from: original, base, sha256 of its inputs, metadata,
    archive_name, warnings. `body_key` is of the spec and of what is in its inputs; with the model it makes the key of
    the row. `predicted_s` is by arithmetic.
    """

    number: int
    custom_id: str
    spec: Document
    origin: Document
    body_key: str
    predicted_s: float
    num_frames: int

    @property
    def archive_name(self) -> str | None:
        name: str | None = self.origin["archive_name"]
        return name


@dataclass
class _Sum:
    """Of the rows in one state."""

    rows: int = 0
    seconds: float = 0.0
    frames: int = 0

    def add(self, sign: int, seconds: float, frames: int) -> None:
        self.rows += sign
        self.seconds += sign * seconds
        self.frames += sign * frames


@dataclass(frozen=True, kw_only=True)
class TableRow(PlannedRow):
    """A planned row and what became of it so far."""

    seq: int
    attempts: int
    brought_down: int


class RowTable:
    """All planned rows, longest first; whatever is asked for often takes no longer with a million of them."""

    def __init__(self, path: Path) -> None:
        """Makes the table on the disk of `path`, where nobody else sees it."""
        path.unlink(missing_ok=True)
        self._rows = sqlite3.connect(path, isolation_level=None)
        self._rows.row_factory = sqlite3.Row
        self._sums = {state: _Sum() for state in RowState}
        with _told(path):
            # A journal in memory takes back a row whose id is taken; nothing has to be durable.
            self._rows.executescript(f"PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; {_SCHEMA}")
        path.unlink()  # what is open stays; its space is free again however this process ends
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._rows.close()

    def add(self, row: PlannedRow) -> int | None:
        """Adds a row; when its id or its name in the archive is taken, returns the number of the row that has it.

        They become folders and files, and some file systems do not tell "A" from "a". Raises OutputError.
        """
        folded, archived = row.custom_id.casefold(), row.archive_name and row.archive_name.casefold()
        refused = self._rows.execute("SELECT number FROM refused WHERE folded = ?", (folded,)).fetchone()
        if refused is not None:
            return int(refused["number"])
        values = (row.number, row.custom_id, folded, archived, json.dumps(row.spec), json.dumps(row.origin))
        try:
            with _told(self._path):
                self._rows.execute(_INSERT, (*values, row.body_key, row.predicted_s, row.num_frames, RowState.PENDING))
        except sqlite3.IntegrityError:
            found = self._rows.execute("SELECT number FROM rows WHERE folded = ? OR archived = ?", (folded, archived))
            return int(found.fetchone()["number"])
        self._sums[RowState.PENDING].add(1, row.predicted_s, row.num_frames)
        return None

    def refuse(self, custom_id: str, *, number: int) -> None:
        """Takes the id of a bad row; raises OutputError.

        Once mended, that row is submitted again with this id: its video would replace that of any other row.
        """
        folded = custom_id.casefold()
        with _told(self._path):
            self._rows.execute(_REFUSE, (folded, number, folded))

    def take(self, *, now: float) -> TableRow | None:
        """Returns the longest row that is due, as running from now on; None where none is due."""
        found = self._rows.execute(
            "SELECT * FROM rows WHERE state = ? AND due_at <= ? ORDER BY predicted_s DESC, seq LIMIT 1",
            (RowState.PENDING, now),
        ).fetchone()
        if found is None:
            return None
        self._move(found["seq"], RowState.RUNNING, attempts=1)
        return _row(found, attempts=found["attempts"] + 1)

    def end(self, seq: int, state: RowState) -> None:
        """Notes how a row ended."""
        self._move(seq, state)

    def try_again(self, seq: int, *, due_at: float, has_brought_down: bool) -> None:
        """Lets a row that runs wait for its next attempt."""
        self._move(seq, RowState.PENDING, due_at=due_at, brought_down=int(has_brought_down))

    def hand_back(self, seq: int, *, due_at: float) -> None:
        """Lets a row wait again that nobody began, or that was stopped; that was no attempt."""
        self._move(seq, RowState.PENDING, due_at=due_at, attempts=-1)

    def has_waiting(self, *, more_than: int = 0) -> bool:
        """Whether more rows than so many wait."""
        return self._sums[RowState.PENDING].rows > more_than

    def find_pending(self, custom_id: str) -> TableRow | None:
        """Returns the row of that id if it waits."""
        found = self._rows.execute(
            "SELECT * FROM rows WHERE folded = ? AND custom_id = ? AND state = ?",
            (custom_id.casefold(), custom_id, RowState.PENDING),
        ).fetchone()
        return None if found is None else _row(found, attempts=found["attempts"])

    def predicted(self) -> Iterator[float]:
        """Yields the predicted seconds of the rows that wait, longest first."""
        for (seconds,) in self._rows.execute(
            "SELECT predicted_s FROM rows WHERE state = ? ORDER BY predicted_s DESC", (RowState.PENDING,)
        ):
            yield float(seconds)

    def counts(self) -> dict[RowState, int]:
        """Returns how many rows there are in each state."""
        return {state: total.rows for state, total in self._sums.items()}

    def work(self) -> tuple[float, int]:
        """Returns the predicted seconds and the frames of the rows that wait or run."""
        left = [self._sums[state] for state in (RowState.PENDING, RowState.RUNNING)]
        return max(0.0, sum(one.seconds for one in left)), sum(one.frames for one in left)

    def _move(
        self, seq: int, to: RowState, *, due_at: float | None = None, attempts: int = 0, brought_down: int = 0
    ) -> None:
        """Lets a row become another state; the numbers are added to what it has."""
        with _told(self._path):
            state, seconds, frames = self._rows.execute(
                "SELECT state, predicted_s, num_frames FROM rows WHERE seq = ?", (seq,)
            ).fetchone()
            self._rows.execute(
                "UPDATE rows SET state = ?, due_at = coalesce(?, due_at), attempts = attempts + ?, "
                "brought_down = brought_down + ? WHERE seq = ?",
                (to, due_at, attempts, brought_down, seq),
            )
        self._sums[RowState(state)].add(-1, seconds, frames)
        self._sums[to].add(1, seconds, frames)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Raises OutputError where the disk is full; that an id is taken is for the caller."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OutputError(
            f'"{path}" cannot be written: {error}',
            remedy="give this machine's folder for temporary files (TMPDIR) more space; what was done stays done",
        ) from error


def _row(found: sqlite3.Row, *, attempts: int) -> TableRow:
    return TableRow(
        seq=found["seq"],
        number=found["number"],
        custom_id=found["custom_id"],
        spec=json.loads(found["spec"]),
        origin=json.loads(found["origin"]),
        body_key=found["body_key"],
        predicted_s=found["predicted_s"],
        num_frames=found["num_frames"],
        attempts=attempts,
        brought_down=found["brought_down"],
    )
