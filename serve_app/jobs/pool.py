"""A pool: the groups of one layout, the jobs that wait for them, and whether another one can be promised anything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapreplace
from itertools import chain, islice

from serve_app.jobs.forecast import BulkShare, Forecast
from serve_app.jobs.queue import ROUNDING_S, Entry, Queue
from serve_app.jobs.supply import Supply

PACE_WEIGHT = 0.3
"""How much the newest block says about those to come."""


@dataclass(frozen=True)
class Booking:
    """A job that the ledger has taken. `seconds` is what was predicted, `work_s` what is set aside for it.

    `finish_by` is the promise and `expires_at` the request's own deadline, both on the ledger's clock.
    """

    job_id: str
    layout: str
    seconds: float
    work_s: float
    arrival: int
    finish_by: float | None
    expires_at: float | None = None

    def entry(self) -> Entry:
        """Returns the job as one that waits."""
        return Entry(
            self.job_id,
            work_s=self.work_s,
            finish_by=math.inf if self.finish_by is None else self.finish_by,
            arrival=self.arrival,
            is_promised=self.finish_by is not None,
            expires_at=math.inf if self.expires_at is None else self.expires_at,
        )


@dataclass
class Group:
    """A replica group. It takes a job when it `is_ready` and runs none; `free_at` is infinite while nobody can say."""

    name: str
    layout: str
    free_at: float
    is_ready: bool = True
    is_draining: bool = False
    running: Booking | None = None
    block_seconds: float | None = None

    @property
    def is_idle(self) -> bool:
        return self.is_ready and not self.is_draining and self.running is None

    @property
    def counts(self) -> bool:
        """Says whether further work can be planned on the group."""
        return not self.is_draining and self.free_at < math.inf

    def smoothed(self, block_seconds: float) -> float:
        """Takes the time of the newest block into account and returns what a block takes on the average."""
        before = block_seconds if self.block_seconds is None else self.block_seconds
        self.block_seconds = before + PACE_WEIGHT * (block_seconds - before)
        return self.block_seconds


@dataclass(frozen=True)
class Opening:
    """A place for a job: jobs and work before it, and when it would start."""

    position: int
    start: float


@dataclass
class Pool:
    """`bulk_floor` is the part of the groups' time that waiting bulk is sure of.

    Bulk waits in its own line. It runs when nothing else waits; and for every second of waiting it earns
    `bulk_floor` seconds per group: when they cover the first in line, that takes its place in the queue, behind
    all that wait, and from its turn on nothing promised later overtakes it.
    """

    layout: str
    bulk_floor: float
    groups: dict[str, Group] = field(default_factory=dict)
    queue: Queue = field(default_factory=Queue)
    bulk: dict[str, Entry] = field(default_factory=dict)
    bulk_work_s: float = 0.0
    bulk_credit_s: float = 0.0
    _supply: Supply = field(default_factory=lambda: Supply(()))
    _free_at: dict[str, float] = field(default_factory=dict)
    _refreshed_at: float | None = None

    @property
    def num_waiting(self) -> int:
        return len(self.queue) + len(self.bulk)

    def refreshed(self, now: float) -> Supply:
        """Brings supply and bulk's credit up to `now`."""
        free_at = {group.name: max(group.free_at, now) for group in self.groups.values() if group.counts}
        if free_at != self._free_at:
            if self._free_at.keys() - free_at.keys():
                self.queue.forget_supply()
            delays = (moment - self._free_at.get(name, moment) for name, moment in free_at.items())
            drift = self._supply.drift + sum(delay for delay in delays if delay > 0)
            self._supply = Supply(free_at.values(), drift=drift)
            self._free_at = free_at
        if self._refreshed_at is not None:
            self._earn(now - self._refreshed_at, now)
        self._refreshed_at = now
        return self._supply

    def place(self, entry: Entry, now: float) -> Opening | None:
        """Returns the place of a job that would be promised `entry.finish_by`; None when that would break a promise."""
        supply = self.refreshed(now)
        position, before = self.queue.due_by(entry.finish_by)
        if before > supply.by(entry.finish_by - entry.work_s) + ROUNDING_S:
            return None
        if self.queue.last_in_the_way(entry.work_s, behind=entry.finish_by, supply=supply) is not None:
            return None
        return Opening(position, supply.when(before))

    def place_of_bulk(self, now: float) -> Opening:
        """Returns the place of one more bulk job: at the end."""
        supply = self.refreshed(now)
        return Opening(self.num_waiting, supply.when(self.queue.work_s + self.bulk_work_s))

    def place_of(self, job_id: str, now: float) -> Opening:
        """Returns the place of a job that waits here."""
        supply = self.refreshed(now)
        if job_id in self.queue:
            position, work_s = self.queue.ahead_of(self.queue.get(job_id))
            return Opening(position, supply.when(work_s))
        line = list(self.bulk)
        before = line[: line.index(job_id)]
        work_s = self.queue.work_s + sum(self.bulk[other].work_s for other in before)
        return Opening(len(self.queue) + len(before), supply.when(work_s))

    def first_opening(self, work_s: float, *, patience_s: float, now: float, earliest: float) -> float:
        """Returns when a job that has to end `patience_s` after it is asked for is accepted; infinite: not foreseen."""
        supply = self.refreshed(now)
        forecast = Forecast(self.queue, supply, self._bulk_share(), now=now, work_s=work_s, patience_s=patience_s)
        return forecast.first_opening(earliest=earliest)

    def add(self, booking: Booking, now: float) -> None:
        """Lets a job wait here."""
        self.refreshed(now)
        if booking.finish_by is None:
            self._add_bulk(booking.entry())
        else:
            self.queue.add(booking.entry())

    def remove(self, job_id: str, now: float) -> None:
        """Takes a waiting job out."""
        self.refreshed(now)
        if job_id in self.queue:
            self.queue.remove(job_id)
        else:
            self._take_bulk(job_id)

    def take(self, job_id: str, now: float) -> None:
        """Takes a waiting job out because it starts: bulk uses up what it has earned."""
        self.refreshed(now)
        if job_id in self.bulk:
            self.bulk_credit_s = max(0.0, self.bulk_credit_s - self.bulk[job_id].work_s)
        self.remove(job_id, now)

    def next_job_id(self, now: float) -> str | None:
        """Returns whose turn it is."""
        self.refreshed(now)
        first = self.queue.first
        return first.job_id if first is not None else next(iter(self.bulk), None)

    def next_departures(self, number: int, now: float) -> Iterator[float]:
        """Yields when the next so many jobs wait no more, as far as that is foreseen: they start, or expire before."""
        free_at = list(self.refreshed(now).free_at)
        for entry in islice(chain(self.queue, self.bulk.values()), number if free_at else 0):
            start = free_at[0]
            yield min(start, entry.expires_at)
            if start < entry.expires_at:
                heapreplace(free_at, start + entry.work_s)

    def _bulk_share(self) -> BulkShare:
        return BulkShare(
            waiting=self.bulk.values(),
            work_s=self.bulk_work_s,
            credit_s=self.bulk_credit_s,
            credit_per_s=self.bulk_floor * len(self._supply.free_at),
        )

    def _first_bulk_work_s(self) -> float:
        first = next(iter(self.bulk.values()), None)
        return math.inf if first is None else first.work_s

    def _earn(self, elapsed_s: float, now: float) -> None:
        if not self.bulk:
            self.bulk_credit_s = 0.0
            return
        credit_per_s = self.bulk_floor * len(self._supply.free_at)
        self.bulk_credit_s += credit_per_s * elapsed_s
        while self.bulk_credit_s >= self._first_bulk_work_s():
            entry = self._take_bulk(next(iter(self.bulk)))
            self.bulk_credit_s -= entry.work_s
            last = self.queue.last
            turn = now if last is None else math.nextafter(max(now, last.finish_by), math.inf)
            self.queue.add(Entry(entry.job_id, entry.work_s, turn, entry.arrival, is_promised=False))

    def _add_bulk(self, entry: Entry) -> None:
        last = next(reversed(self.bulk.values()), None)
        self.bulk[entry.job_id] = entry
        self.bulk_work_s += entry.work_s
        if last is not None and entry.arrival < last.arrival:  # it comes back from a lost group
            self.bulk = dict(sorted(self.bulk.items(), key=lambda item: item[1].arrival))

    def _take_bulk(self, job_id: str) -> Entry:
        entry = self.bulk.pop(job_id)
        self.bulk_work_s = self.bulk_work_s - entry.work_s if self.bulk else 0.0
        return entry


def departure_of(number: int, pools: Iterable[Pool], now: float) -> float:
    """Returns when the next so many jobs of all that wait in `pools` wait no more; infinite if not so many do."""
    departures = sorted(moment for pool in pools for moment in pool.next_departures(number, now))
    return departures[number - 1] + ROUNDING_S if len(departures) >= number else math.inf
