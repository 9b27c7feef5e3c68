"""When would a request be accepted that is not accepted now: the schedule, played forward.

Nothing else comes meanwhile and everything takes as long as predicted. Then queued jobs start in their order, bulk
behind them, each on the group that is free first; a request that comes at t brings the deadline t + patience.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from itertools import chain

from serve_app.jobs.queue import ROUNDING_S, Entry, Queue
from serve_app.jobs.supply import Supply

MAX_STARTS = 128
"""Starts that are played one by one; what is answered from there on is sure to hold, but may be later than need be."""


@dataclass(frozen=True)
class BulkShare:
    """Bulk that waits, and how it earns places in the queue: a job's when `credit_s` covers it."""

    waiting: Iterable[Entry] = ()
    work_s: float = 0.0
    first_work_s: float = math.inf
    credit_s: float = 0.0
    credit_per_s: float = 0.0

    def may_be_queued_s(self, elapsed_s: float) -> float:
        """Returns the most work of bulk that takes a place in the queue within `elapsed_s`."""
        earned = self.credit_s + self.credit_per_s * elapsed_s
        return min(self.work_s, earned) if earned >= self.first_work_s else 0.0


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
    _started_s: float = field(default=0.0, init=False)
    _bulk_started_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._free_at = list(self.supply.free_at)
        heapify(self._free_at)

    def first_opening(self, *, earliest: float) -> float | None:
        """Returns the first moment, not before `earliest`, at which the request is accepted; None: not foreseen."""
        if self.patience_s < self.work_s or not self._free_at:
            return None
        in_the_way = self.queue.last_in_the_way(self.work_s, behind=self.now + self.patience_s, supply=self.supply)
        waiting = chain(self.queue, self.bulk.waiting)
        following, moment = next(waiting, None), earliest
        for _ in range(MAX_STARTS):
            while following is not None and self._free_at[0] <= moment:
                in_the_way = None if following is in_the_way else in_the_way
                self._start(following)
                following = next(waiting, None)
            opening = self._opening(moment, in_the_way)
            if opening <= moment:
                return moment
            moment = min(opening, self._free_at[0] if following is not None else math.inf)
        return self._certain_opening(moment, in_the_way)

    def _start(self, entry: Entry) -> None:
        heapreplace(self._free_at, self._free_at[0] + entry.work_s)
        self._started_s += entry.work_s
        if entry.job_id not in self.queue:
            self._bulk_started_s += entry.work_s

    def _opening(self, moment: float, in_the_way: Entry | None) -> float:
        """Returns when the request is accepted as far as those jobs go that stand before it, or are in its way, now."""
        if in_the_way is not None and moment + self.patience_s < in_the_way.finish_by:
            return in_the_way.finish_by - self.patience_s + ROUNDING_S
        _, due_s = self.queue.due_by(moment + self.patience_s + ROUNDING_S)
        ahead = max(0.0, due_s - self._started_s)
        bulk = max(0.0, self.bulk.may_be_queued_s(moment - self.now) - self._bulk_started_s)
        supply = Supply(self._free_at)
        latest_start = moment + self.patience_s - self.work_s
        if ahead + bulk <= supply.by(latest_start) + ROUNDING_S:
            return moment
        return max(math.nextafter(moment, math.inf), supply.when(ahead + bulk) - self.patience_s + self.work_s)

    def _certain_opening(self, moment: float, in_the_way: Entry | None) -> float:
        """Returns when all that waits now can lie before the request, and nobody whom it would delay lies behind."""
        everything = self.queue.work_s + self.bulk.work_s
        opening = max(moment, self.supply.when(everything) - self.patience_s + self.work_s)
        return opening if in_the_way is None else max(opening, in_the_way.finish_by - self.patience_s + ROUNDING_S)
