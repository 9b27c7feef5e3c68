"""Lanes in a world of their own time: what takes hours takes no time, and comes in the same order every time."""

from __future__ import annotations

import heapq
import itertools
import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serve_app.bulk.course import Course, Ending
from serve_app.bulk.lanes.messages import LaneStatus, RowOrder, RowReport
from serve_app.bulk.outcomes import Code, RowError
from serve_app.bulk.row import BadRow
from serve_app.bulk.table import RowTable
from serve_app.bulk.tally import Tally
from serve_app.jobs.messages import GroupCondition
from serve_app.schemas.bulk import BulkLimits
from tests.bulk.rows import error, planned

READY, STARTING, FAILED = GroupCondition.READY, GroupCondition.STARTING, GroupCondition.FAILED
NEVER_S = 1e5
Outcome = RowError | RowReport | None
"""How an order ends: as that error, with that report but for its address, or well."""


@dataclass
class FakeLane:
    """Renders one order after the other; `lost`: orders that never arrive, by id of their row."""

    condition: GroupCondition = READY
    orders: list[RowOrder] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    is_mute: bool = False


class World:
    """Lanes, the way to them, and whoever hears of it: all that a course needs. `course.Lanes`, `Way` and `Hears`."""

    def __init__(
        self, *lanes: str, outcome: Callable[[RowOrder], Outcome] = lambda _: None, limits: BulkLimits | None = None
    ) -> None:
        self.now = 0.0
        self.lanes = {name: FakeLane() for name in lanes or ("a",)}
        self.limits = limits or BulkLimits()
        self.outcome = outcome
        self.sent: list[tuple[float, str, RowOrder]] = []
        self.results: list[Any] = []
        self.bad: list[BadRow] = []
        self.steps: list[tuple[str, Any]] = []
        self.breaks_down_with: Exception | None = None
        self._events: list[tuple[float, int, Callable[[], RowReport | None]]] = []
        self._count = itertools.count()

    def course(self, table: RowTable, *, at_once: int = 2) -> Course:
        return Course(
            table,
            self,
            self,
            self,
            model="m",
            at_once=at_once,
            limits=self.limits,
            tally=Tally(num_ranks=1),
            clock=lambda: self.now,
        )

    # The way.

    @property
    def reports(self) -> Any:
        return self

    def send(self, lane: str, order: RowOrder) -> None:
        self.sent.append((self.now, lane, order))
        there = self.lanes[lane]
        if order.custom_id in there.lost:
            there.lost.discard(order.custom_id)
            return
        there.orders.append(order)
        if len(there.orders) == 1:
            self._begin(lane)

    def get(self, *, timeout: float) -> RowReport:
        """Lets time pass until a report comes, or that long; see `queue.Queue`."""
        if self.breaks_down_with is not None:
            return self.breaks_down_with  # type: ignore[return-value]
        deadline = self.now + timeout
        assert deadline < NEVER_S, "the job does not come to its end"
        while self._events and self._events[0][0] <= deadline:
            self.now, _, event = heapq.heappop(self._events)
            report = event()
            if report is not None:
                return report
        self.now = deadline
        raise queue.Empty

    def after(self, seconds: float, event: Callable[[], RowReport | None]) -> None:
        """Lets something happen later; a report that it returns arrives then."""
        heapq.heappush(self._events, (self.now + seconds, next(self._count), event))

    def _begin(self, lane: str) -> None:
        order = self.lanes[lane].orders[0]
        self.after(order.spec["seconds"], lambda: self._end(lane, order))

    def _end(self, lane: str, order: RowOrder) -> RowReport | None:
        there = self.lanes[lane]
        if not there.orders or there.orders[0] is not order:
            return None
        there.orders.pop(0)
        if there.orders:
            self._begin(lane)
        return None if there.is_mute else ended(order, lane, self.outcome(order))

    # The lanes.

    def look(self) -> Mapping[str, LaneStatus]:
        return {
            name: LaneStatus(
                name,
                lane.condition,
                orders=tuple((order.seq, order.attempt) for order in lane.orders),
                reason="the reason",
                asked_at=self.now,
            )
            for name, lane in self.lanes.items()
        }

    def stop(self) -> None:
        for name, lane in self.lanes.items():
            for order in () if lane.is_mute else lane.orders:
                self.after(0.1, lambda name=name, order=order: ended(order, name, stopped()))  # type: ignore[misc]
            lane.orders.clear()

    # Who hears.

    def step(self, event: str, about: Any) -> None:
        self.steps.append((event, about))

    def done(self, result: Any) -> None:
        self.results.append(result)

    def failed(self, row: BadRow) -> None:
        self.bad.append(row)


def ended(order: RowOrder, lane: str, outcome: Outcome) -> RowReport:
    """Returns the report of an order that ended so."""
    if isinstance(outcome, RowReport):
        return replace(outcome, seq=order.seq, attempt=order.attempt, lane=lane)
    if isinstance(outcome, RowError):
        return RowReport(order.seq, order.attempt, lane, error=outcome, busy_s=order.spec["seconds"])
    result = {"custom_id": order.custom_id, "seconds": 1.0, "row_key": order.row_key, "group": lane}
    return RowReport(order.seq, order.attempt, lane, result=result, busy_s=order.spec["seconds"])


def stopped() -> RowError:
    return RowError(Code.CANCELLED, "stopped", "render")


def a_table(path: Path, seconds: Mapping[str, float] | int) -> RowTable:
    """Returns a table of rows that take so long, or of so many that take a second."""
    rows = seconds if isinstance(seconds, Mapping) else {f"row-{number}": 1.0 for number in range(1, seconds + 1)}
    table = RowTable(path / "rows.sqlite3")
    for number, (custom_id, one) in enumerate(rows.items(), start=1):
        table.add(planned(custom_id, number=number, predicted_s=one, spec={"seconds": one}))
    return table


def run(
    course: Course,
    *,
    is_stopped: Callable[[], bool] = lambda: False,
    on_look: Callable[[], None] = lambda: None,
    more: Callable[[], bool] = lambda: False,
) -> Ending:
    return course.run(is_stopped=is_stopped, on_look=on_look, more=more)


def sent_rows(world: World) -> list[str]:
    return [order.custom_id for _, _, order in world.sent]


def failing(*outcomes: Outcome) -> Callable[[RowOrder], Outcome]:
    """Returns outcomes for the first attempts of every row; the further ones go well."""
    return lambda order: outcomes[order.attempt - 1] if order.attempt <= len(outcomes) else None


def brought_down(code: Code = Code.RANK_DIED) -> RowReport:
    return RowReport(0, 0, "", error=error(code), has_brought_down=True, busy_s=1.0)


def not_begun() -> RowReport:
    return RowReport(0, 0, "", error=error(Code.NODE_LOST), is_begun=False)
