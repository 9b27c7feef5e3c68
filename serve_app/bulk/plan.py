"""Plan: what a manifest asks for, before anything is rendered: its rows in a table, and the sum of them."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from serve_app.bulk.outcomes import Code, RowError
from serve_app.bulk.row import BadRow, Document
from serve_app.bulk.table import PlannedRow, RowTable
from serve_app.planning.geometry import FPS

_SHOWN = 10

OnBad = Callable[[BadRow], None]


@dataclass
class Plan:
    """Counts of a manifest. `examples` are the first few rows that will not be rendered."""

    num_rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def num_bad(self) -> int:
        return sum(self.bad.values())

    def as_json(self, table: RowTable, *, num_lanes: int, num_ranks: int) -> dict[str, Any]:
        """Returns the plan with time and cost on so many lanes of so many GPUs each."""
        seconds, frames = table.work()
        return {
            "rows": self.num_rows,
            "good": self.num_rows - self.num_bad,
            "bad": dict(self.bad),
            "examples": self.examples,
            "video_s": round(frames / FPS, 2),
            "gpu_hours": round(seconds * num_ranks / 3600, 3),
            "lanes": num_lanes,
            "gpus_per_lane": num_ranks,
            "eta_s": round(makespan(table.predicted(), num_lanes), 1),
        }


def fill(table: RowTable, rows: Iterable[PlannedRow | BadRow], plan: Plan, *, on_bad: OnBad) -> None:
    """Puts the good rows into the table; each bad one is told at once, also one whose id a row before it has."""
    for row in rows:
        plan.num_rows += 1
        bad = row if isinstance(row, BadRow) else _added(row, table)
        if bad is None:
            continue
        if bad.custom_id:
            table.refuse(bad.custom_id, number=bad.number)
        _reject(bad, plan, on_bad)


def makespan(seconds: Iterable[float], num_lanes: int) -> float:
    """Returns when the last lane is done, if the longest row that waits goes to the first lane that is free."""
    free_at = [0.0] * num_lanes
    for one in seconds:
        heapq.heapreplace(free_at, free_at[0] + one)
    return max(free_at)


def _added(row: PlannedRow, table: RowTable) -> BadRow | None:
    """Puts a row into the table; returns it as a bad one where its id is taken."""
    taken_by = table.add(row)
    return None if taken_by is None else _not_unique(row, taken_by)


def _reject(row: BadRow, plan: Plan, on_bad: OnBad) -> None:
    plan.bad[row.error.code.value] += 1
    if len(plan.examples) < _SHOWN:
        plan.examples.append(f"row {row.number}{f' ({row.custom_id})' if row.custom_id else ''}: {row.error.message}")
    on_bad(row)


def _not_unique(row: PlannedRow, taken_by: int) -> BadRow:
    message = (
        f"row {row.number} is {row.custom_id!r}, and row {taken_by} has that id, or the same name in the archive "
        "(some file systems do not tell capitals from small letters); give each row its own"
    )
    error = RowError(Code.DUPLICATE_ID, message, "manifest")
    original: Document = row.origin["original"]
    return BadRow(row.number, original, row.origin["base"], error, custom_id=row.custom_id)
