"""Course: the driver's loop: which row goes to which lane, what is tried again, and when it is over.

Knows neither Ray nor files: lanes, their reports and the clock come in.
"""

from __future__ import annotations

import enum
import queue
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from serve_app.bulk.identity import row_key
from serve_app.bulk.lanes.messages import LaneStatus, RowOrder, RowReport
from serve_app.bulk.lasting import Lasting
from serve_app.bulk.outcomes import Fault, RowError
from serve_app.bulk.policy import Breaker, RetryPolicy
from serve_app.bulk.row import BadRow, Document
from serve_app.bulk.table import RowState, RowTable, TableRow
from serve_app.bulk.tally import Tally
from serve_app.errors import UnavailableError
from serve_app.jobs.fleet import Pace
from serve_app.jobs.messages import GroupCondition
from serve_app.schemas.bulk import BulkLimits

_LOOK_EVERY_S = 0.5
_POOL = "bulk"
_MISSED_S = 30.0
"""An order of which a lane that answers knows nothing after so long got lost on its way."""
_UNBEGUN_S = 5.0
"""A row whose lane was not there waits so long: others may be free."""
_AT_WORK = (GroupCondition.READY, GroupCondition.BUSY)


class Ending(enum.StrEnum):
    """How a run ended. BROKEN: the breaker opened, the job pauses."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    BROKEN = "broken"


class Lanes(Protocol):
    """The lanes, as far as the course needs them."""

    def look(self) -> Mapping[str, LaneStatus]:
        """Returns what each lane told last; soon."""
        ...

    def stop(self) -> None:
        """Lets what runs end at its next block border."""
        ...


class Way(Protocol):
    """How orders get to lanes, and reports back; `fan_out.FanOut` is one."""

    @property
    def reports(self) -> queue.SimpleQueue[RowReport | Exception]: ...
    def send(self, lane: str, order: RowOrder) -> None: ...


class Hears(Protocol):
    """Who is told of every step; `reports.Reports` is one."""

    def step(self, event: str, about: Document) -> None: ...
    def done(self, result: Document) -> None: ...
    def failed(self, row: BadRow) -> None: ...


@dataclass(frozen=True)
class _Sent:
    row: TableRow
    lane: str
    at: float


class Course:
    """Renders the rows of a table that wait; see `run`."""

    def __init__(
        self,
        table: RowTable,
        lanes: Lanes,
        way: Way,
        hears: Hears,
        *,
        model: str,
        at_once: int,
        limits: BulkLimits,
        tally: Tally,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`model` is the digest of what renders; each lane takes `at_once` rows; `clock` is that of the statuses."""
        self._table, self._lanes, self._way, self._hears = table, lanes, way, hears
        self._model, self._at_once, self._limits = model, at_once, limits
        self._retry = RetryPolicy(limits.max_attempts, limits.retry_after_s, limits.max_brought_down)
        self.breaker = Breaker(limits.breaker_window, limits.breaker_share)
        self.pace = Pace()
        self.tally = tally
        self._now = clock
        self._sent: dict[tuple[int, int], _Sent] = {}
        self._without_lane = Lasting()
        self.statuses: Mapping[str, LaneStatus] = {}
        self._is_stopping = False

    def run(self, *, is_stopped: Callable[[], bool], on_look: Callable[[], None], more: Callable[[], bool]) -> Ending:
        """Works until every row has ended, the breaker opens, or it is stopped; rows that wait then go on waiting.

        `on_look` is called twice a second; `more` puts further rows into the table and says whether others may come.
        Raises UnavailableError when no lane is left, or none comes for too long, and what the way back raises.
        """
        while True:
            self._hear_until(self._now() + _LOOK_EVERY_S)
            self._look(on_look)
            has_more = more()
            if is_stopped():
                return self._stopped()
            if not self.breaker.is_open:
                self._order()
            if not self._sent:
                if self.breaker.is_open:
                    return Ending.BROKEN
                if not has_more and not self._table.has_waiting():
                    return Ending.FINISHED

    def rest_s(self) -> float | None:
        """Returns how long the rest takes, at the pace of the rows before; None before the first."""
        num_groups = self.tally.num_ready
        if not num_groups or not self.pace.knows(_POOL):
            return None
        return self._table.work()[0] * self.pace.of(_POOL) / num_groups

    def _hear_until(self, deadline: float) -> None:
        """Takes every report that comes, and lets its lane go on at once."""
        while (left_s := deadline - self._now()) > 0:
            try:
                report = self._way.reports.get(timeout=left_s)
            except queue.Empty:
                return
            if isinstance(report, Exception):
                raise report
            self._take(report)
            if not self._is_stopping and not self.breaker.is_open:
                self._order()

    def _look(self, on_look: Callable[[], None]) -> None:
        self.statuses = self._lanes.look()
        self.tally.look(list(self.statuses.values()), now=self._now())
        self._check_lanes()
        self._miss()
        on_look()

    def _check_lanes(self) -> None:
        """Ends a job without lanes: those that start may never find a place again on a cluster that lost a node."""
        conditions = [status.condition for status in self.statuses.values()]
        if all(condition is GroupCondition.FAILED for condition in conditions):
            raise self._without_lanes("no group is left")
        has_rows = bool(self._sent) or self._table.has_waiting()
        is_without = has_rows and not any(condition in _AT_WORK for condition in conditions)
        limit_s = self._limits.no_lane_s
        if self._without_lane.look(is_so=is_without, now=self._now()) > limit_s:
            raise self._without_lanes(f"rows wait, and no group has been ready for {limit_s:.0f} s")

    def _without_lanes(self, message: str) -> UnavailableError:
        reasons = "; ".join(f"{name}: {status.reason or status.condition}" for name, status in self.statuses.items())
        return UnavailableError(f"{message} ({reasons})", remedy="see the reason; the same command continues")

    def _miss(self) -> None:
        """Hands back orders that their lane never got, or took with it when it went for good."""
        for key, sent in list(self._sent.items()):
            if self._is_missed(key, sent):
                self._step("missed", sent)
                del self._sent[key]
                self._table.hand_back(sent.row.seq, due_at=0.0)

    def _is_missed(self, key: tuple[int, int], sent: _Sent) -> bool:
        status = self.statuses[sent.lane]
        if key in status.orders:
            return False
        if status.condition is GroupCondition.STARTING:  # the way tells what becomes of its orders, or nobody does
            return self._now() - sent.at > self._limits.no_lane_s
        return status.asked_at - sent.at > _MISSED_S

    def _order(self) -> None:
        """Gives rows to lanes: the emptiest first; towards the end no row waits at a lane that works."""
        while (lane := self._next_lane()) is not None:
            row = self._table.take(now=self._now())
            if row is None:
                return
            sent = self._sent[row.seq, row.attempts] = _Sent(row, lane, self._now())
            self._step("ordered", sent)
            self._way.send(lane, self._order_of(row))

    def _next_lane(self) -> str | None:
        loads = Counter(sent.lane for sent in self._sent.values())
        at_work = [name for name, status in self.statuses.items() if status.condition in _AT_WORK]
        most = self._at_once if self._table.has_waiting(more_than=len(at_work)) else 1
        free = [name for name in at_work if loads[name] < most]
        return min(free, key=lambda name: loads[name], default=None)

    def _order_of(self, row: TableRow) -> RowOrder:
        limits = self._limits
        limit_s = max(limits.row_least_s, limits.row_factor * row.predicted_s * self.pace.of(_POOL))
        return RowOrder(
            seq=row.seq,
            custom_id=row.custom_id,
            attempt=row.attempts,
            spec=row.spec,
            sha256=row.origin["sha256"],
            row_key=row_key(row.body_key, model=self._model),
            limit_s=min(limit_s, limits.row_most_s or limit_s),
            metadata=row.origin["metadata"],
            warnings=tuple(row.origin["warnings"]),
            archive_name=row.archive_name,
        )

    def _take(self, report: RowReport) -> None:
        sent = self._sent.get((report.seq, report.attempt))
        if sent is None:  # given up before, and done by another attempt or yet to be
            return
        if report.result is None and report.lane != sent.lane:  # of a lane that it was taken from: the other one has it
            return
        del self._sent[report.seq, report.attempt]
        self.tally.count(report, predicted_s=sent.row.predicted_s)
        if report.result is not None:
            self._succeed(sent, report, report.result)
        elif report.error is not None and report.error.fault is Fault.CANCELLED:
            self._step("stopped", sent)
            self._table.hand_back(sent.row.seq, due_at=0.0)
        elif not report.is_begun:
            self._step("not begun", sent, report)
            self._table.hand_back(sent.row.seq, due_at=self._now() + _UNBEGUN_S)
        else:
            self._fail(sent, report)

    def _succeed(self, sent: _Sent, report: RowReport, result: Document) -> None:
        self._step("done", sent, report)
        self.breaker.note(None)
        if report.busy_s:
            self.pace.learn(_POOL, seconds=report.busy_s, predicted_s=sent.row.predicted_s)
        self._table.end(sent.row.seq, RowState.DONE)
        self._hears.done(result)

    def _fail(self, sent: _Sent, report: RowReport) -> None:
        assert report.error is not None
        row, error = sent.row, report.error
        self._step("failed", sent, report)
        self.breaker.note(error)
        if report.has_brought_down:
            self._wait_for(sent.lane)
        num_brought_down = row.brought_down + report.has_brought_down
        delay_s = self._retry.delay_s(
            error,
            attempt=row.attempts,
            brought_down=num_brought_down,
            chance=random.random(),  # noqa: S311
        )
        if delay_s is not None:
            due_at = self._now() + delay_s
            self._table.try_again(row.seq, due_at=due_at, has_brought_down=report.has_brought_down)
            return
        if self._retry.is_left_alone(num_brought_down):
            told = f"{error.message}; {num_brought_down} groups failed under this row, so it is left alone"
            error = replace(error, message=told)
        self._table.end(row.seq, RowState.FAILED)
        self.tally.count_bad(error)
        self._hears.failed(failed_row(row, error))

    def _wait_for(self, lane: str) -> None:
        """Gives nothing to a lane whose group has just failed, until it tells that it is ready again."""
        rebuilding = replace(self.statuses[lane], condition=GroupCondition.STARTING)
        self.statuses = {**self.statuses, lane: rebuilding}

    def _stopped(self) -> Ending:
        """Stops what runs, and hears how it ends, within a limit; what is not heard of waits again."""
        self._is_stopping = True
        self._lanes.stop()
        deadline = self._now() + self._limits.stop_s
        while self._sent and self._now() < deadline:
            self._hear_until(min(deadline, self._now() + _LOOK_EVERY_S))
        for sent in self._sent.values():
            self._step("abandoned", sent)
            self._table.hand_back(sent.row.seq, due_at=0.0)
        self._sent.clear()
        return Ending.CANCELLED

    def _step(self, event: str, sent: _Sent, report: RowReport | None = None) -> None:
        about = {"custom_id": sent.row.custom_id, "attempt": sent.row.attempts, "group": sent.lane}
        if report is not None:
            error = report.error
            about |= {"busy_s": round(report.busy_s, 3), "error": None if error is None else error.as_json()}
        self._hears.step(event, about)


def failed_row(row: TableRow, error: RowError) -> BadRow:
    """Returns a row that was tried as errors.jsonl tells of it."""
    return BadRow(row.number, row.origin["original"], row.origin["base"], error, custom_id=row.custom_id)
