"""RowTable: the good rows of one run, in a file, so that a million of them take no memory.

It belongs to one driver and ends with it: what survives is in the output folder.
"""

from __future__ import annotations

import enum
import json
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from serve_app.bulk.row import Document

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
"""
_INSERT = """
INSERT INTO rows (number, custom_id, folded, archived, spec, origin, body_key, predicted_s, num_frames, state)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class RowState(enum.StrEnum):
    """Where a row stands. SKIPPED: an earlier run made it."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """A row that may be rendered. `spec` is a RenderSpec as JSON, its inputs as full paths or s3:// addresses.

    `origin` is what reports tell of where it comes from: original, base, metadata, archive_name, warnings. `body_key`
    is of the spec and of what is in its inputs; with the model it makes the key of the row. `predicted_s` is by
    arithmetic.
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


@dataclass(frozen=True, kw_only=True)
class TableRow(PlannedRow):
    """A planned row and what became of it so far."""

    seq: int
    attempts: int
    brought_down: int


class RowTable:
    """All planned rows, longest first."""

    def __init__(self, path: Path) -> None:
        """Makes the table at `path`, in place of what is there."""
        path.unlink(missing_ok=True)
        self._rows = sqlite3.connect(path, isolation_level=None)
        self._rows.row_factory = sqlite3.Row
        # Nothing here outlives the process: there is nothing to make durable.
        self._rows.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_SCHEMA}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._rows.close()

    def add(self, row: PlannedRow) -> int | None:
        """Adds a row; when its id or its name in the archive is taken, returns the number of the row that has it.

        They become folders and files, and some file systems do not tell "A" from "a".
        """
        folded, archived = row.custom_id.casefold(), row.archive_name and row.archive_name.casefold()
        values = (row.number, row.custom_id, folded, archived, json.dumps(row.spec), json.dumps(row.origin))
        with suppress(sqlite3.IntegrityError):
            self._rows.execute(_INSERT, (*values, row.body_key, row.predicted_s, row.num_frames, RowState.PENDING))
            return None
        (number,) = self._rows.execute(
            "SELECT number FROM rows WHERE folded = ? OR archived = ?", (folded, archived)
        ).fetchone()
        return int(number)

    def take(self, *, now: float) -> TableRow | None:
        """Returns the longest row that is due, as running from now on; None where none is due."""
        found = self._rows.execute(
            "SELECT * FROM rows WHERE state = ? AND due_at <= ? ORDER BY predicted_s DESC, seq LIMIT 1",
            (RowState.PENDING, now),
        ).fetchone()
        if found is None:
            return None
        self._rows.execute(
            "UPDATE rows SET state = ?, attempts = attempts + 1 WHERE seq = ?", (RowState.RUNNING, found["seq"])
        )
        return _row(found, attempts=found["attempts"] + 1)

    def end(self, seq: int, state: RowState) -> None:
        """Notes how a row ended."""
        self._rows.execute("UPDATE rows SET state = ? WHERE seq = ?", (state, seq))

    def try_again(self, seq: int, *, due_at: float, has_brought_down: bool) -> None:
        """Lets a row that runs wait for its next attempt."""
        self._rows.execute(
            "UPDATE rows SET state = ?, due_at = ?, brought_down = brought_down + ? WHERE seq = ?",
            (RowState.PENDING, due_at, has_brought_down, seq),
        )

    def hand_back(self, seq: int, *, due_at: float) -> None:
        """Lets a row wait again that nobody began, or that was stopped; that was no attempt."""
        self._rows.execute(
            "UPDATE rows SET state = ?, attempts = attempts - 1, due_at = ? WHERE seq = ?",
            (RowState.PENDING, due_at, seq),
        )

    def has_waiting(self, *, more_than: int) -> bool:
        """Whether more rows than so many wait."""
        found = self._rows.execute(
            "SELECT 1 FROM rows WHERE state = ? LIMIT 1 OFFSET ?", (RowState.PENDING, more_than)
        ).fetchone()
        return found is not None

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
        counted = dict(self._rows.execute("SELECT state, COUNT(*) FROM rows GROUP BY state").fetchall())
        return {state: int(counted.get(state, 0)) for state in RowState}

    def work(self) -> tuple[float, int]:
        """Returns the predicted seconds and the frames of the rows that wait or run."""
        seconds, frames = self._rows.execute(
            "SELECT TOTAL(predicted_s), TOTAL(num_frames) FROM rows WHERE state IN (?, ?)",
            (RowState.PENDING, RowState.RUNNING),
        ).fetchone()
        return float(seconds), int(frames)

    def next_due_at(self) -> float | None:
        """Returns when the first of the rows that wait is due."""
        (due_at,) = self._rows.execute("SELECT MIN(due_at) FROM rows WHERE state = ?", (RowState.PENDING,)).fetchone()
        return None if due_at is None else float(due_at)


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
