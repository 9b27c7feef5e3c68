"""When would a request be accepted that is not accepted now: the schedule, played forward.

Nothing else comes meanwhile and everything takes as long as predicted. Then queued jobs start in their order, bulk
behind them, each on the group that is free first; a request that comes at t brings the deadline t + patience.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from itertools import islice

from serve_app.jobs.queue import ROUNDING_S, Entry, Queue
from serve_app.jobs.supply import Supply

MAX_STEPS = 128
"""Changes that are played one by one; what is told from there on is sure to hold, but may be later than need be."""


@dataclass(frozen=True)
class BulkShare:
    """Bulk that waits behind the queue, and how it earns places in it (`pool`)."""

    waiting: Iterable[Entry] = ()
    work_s: float = 0.0
    credit_s: float = 0.0
    credit_per_s: float = 0.0


@dataclass
class Forecast:
    """One request, `work_s` long, that waits for `patience_s` at most, in front of one pool."""

    queue: Queue
    supply: Supply
    bulk: BulkShare
    now: float
    work_s: float
    patience_s: float
    _free_at: list[float] = field(init=False)
    _queued: Iterator[Entry] = field(init=False)
    _near: deque[Entry] = field(default_factory=deque, init=False)
    _bulk: Iterator[Entry] = field(init=False)
    _next_bulk: Entry | None = field(init=False)
    _queued_started_s: float = field(default=0.0, init=False)
    _bulk_started_s: float = field(default=0.0, init=False)
    _credit_s: float = field(init=False)
    _credit_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._free_at = list(self.supply.free_at)
        heapify(self._free_at)
        self._queued, self._bulk = iter(self.queue), iter(self.bulk.waiting)
        self._next_bulk = next(self._bulk, None)
        self._credit_s, self._credit_at = self.bulk.credit_s, self.now

    def first_opening(self, *, earliest: float) -> float:
        """Returns the first moment, not before `earliest`, at which the request is accepted; infinite: not foreseen."""
        if self.patience_s < self.work_s or not self._free_at:
            return math.inf
        in_the_way = self.queue.last_in_the_way(self.work_s, behind=self.now + self.patience_s, supply=self.supply)
        moment = earliest
        for _ in range(MAX_STEPS):
            while (following := self._next()) is not None and self._free_at[0] <= moment:
                in_the_way = None if following is in_the_way else in_the_way
                self._start_next()
            opening = self._opening(moment, in_the_way)
            if opening <= moment:
                return moment
            moment = self._next_event(moment, opening if following is None else min(opening, self._free_at[0]))
        return self._certain_opening(moment, in_the_way)

    def _next(self) -> Entry | None:
        if not self._near:
            self._near.extend(islice(self._queued, 1))
        return self._near[0] if self._near else self._next_bulk

    def _start_next(self) -> None:
        """Starts the next job that waits, or drops it if it has expired."""
        start = self._free_at[0]
        if self._near:
            entry = self._near.popleft()
            self._queued_started_s += entry.work_s
        else:
            assert self._next_bulk is not None
            entry = self._next_bulk
            self._bulk_started_s += entry.work_s
            self._credit_s, self._credit_at = max(0.0, self._credit(start) - entry.work_s), start
            self._next_bulk = next(self._bulk, None)
        if start < entry.expires_at:
            heapreplace(self._free_at, start + entry.work_s)

    def _opening(self, moment: float, in_the_way: Entry | None) -> float:
        """Returns when the request is accepted as far as those jobs go that stand before it, or are in its way, now."""
        if in_the_way is not None and moment + self.patience_s < in_the_way.finish_by:
            return in_the_way.finish_by - self.patience_s + ROUNDING_S
        _, due_s = self.queue.due_by(moment + self.patience_s + ROUNDING_S)
        expired_s = sum(entry.work_s for entry in self._near if entry.expires_at < moment)
        ahead = max(0.0, due_s - self._queued_started_s - expired_s) + self._bulk_ahead(moment)
        supply = Supply(self._free_at)
        if ahead <= supply.by(moment + self.patience_s - self.work_s) + ROUNDING_S:
            return moment
        return max(math.nextafter(moment, math.inf), supply.when(ahead) - self.patience_s + self.work_s)

    def _next_event(self, moment: float, other: float) -> float:
        """Returns just after `other`, or after a job expires before that; all are `_near` that may until then."""
        while not self._near or self._near[-1].finish_by <= other:
            more = list(islice(self._queued, 1))
            if not more:
                break
            self._near.extend(more)
        expiries = (entry.expires_at for entry in self._near if moment <= entry.expires_at + ROUNDING_S / 2)
        return min([other, *expiries]) + ROUNDING_S

    def _bulk_ahead(self, moment: float) -> float:
        """Returns the most work of bulk that has earned a place in the queue by then and still waits."""
        credit = self._credit(moment)
        if self._next_bulk is None or credit < self._next_bulk.work_s:
            return 0.0
        return min(credit, self.bulk.work_s - self._bulk_started_s)

    def _credit(self, moment: float) -> float:
        return self._credit_s + self.bulk.credit_per_s * (moment - self._credit_at)

    def _certain_opening(self, moment: float, in_the_way: Entry | None) -> float:
        """Returns when all that waits now can lie before the request, and nobody whom it would delay lies behind."""
        everything = self.queue.work_s + self.bulk.work_s
        opening = max(moment, self.supply.when(everything) - self.patience_s + self.work_s)
        return opening if in_the_way is None else max(opening, in_the_way.finish_by - self.patience_s + ROUNDING_S)
