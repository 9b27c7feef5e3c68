"""The ledger: every group, every job that waits or runs, and so what can still be promised.

Pure arithmetic over an injected clock that only goes forward (`time.monotonic`): the Dispatcher, the tests and the
load tests run the same code. It knows nothing of the store; `admission` asks it, the Dispatcher tells it what happens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from serve_app.jobs.pool import Booking, Group, Opening, Pool, departure_of
from serve_app.jobs.quote import Admitted, Demand, Margin, Outcome, Place, Quote, Reason, Rejected, default_deadline_s


@dataclass(frozen=True)
class LedgerLimits:
    """What an operator sets."""

    margin: Margin = field(default_factory=Margin)
    bulk_floor: float = 0.1
    max_waiting: int = 10_000

    def __post_init__(self) -> None:
        if not 0 <= self.bulk_floor < 1:
            raise ValueError(f"bulk_floor {self.bulk_floor} is not a part of the groups' time: 0 <= bulk_floor < 1")
        if self.max_waiting < 1:
            raise ValueError(f"max_waiting {self.max_waiting} is below 1: nothing would ever be accepted")


@dataclass
class Ledger:
    """All pools. A job waits in the pool of its layout, runs on one of its groups, or is not of the ledger."""

    clock: Callable[[], float]
    limits: LedgerLimits = field(default_factory=LedgerLimits)
    is_closed: bool = False
    _pools: dict[str, Pool] = field(default_factory=dict)
    _groups: dict[str, Group] = field(default_factory=dict)
    _waiting: dict[str, Booking] = field(default_factory=dict)
    _running: dict[str, Group] = field(default_factory=dict)
    _expiring: list[tuple[float, str]] = field(default_factory=list)
    _expired: list[str] = field(default_factory=list)
    _arrivals: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def groups(self) -> Mapping[str, Group]:
        return self._groups

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def num_waiting_for(self, layout: str) -> int:
        """Returns how many jobs wait for groups of a layout."""
        pool = self._pools.get(layout)
        return 0 if pool is None else pool.num_waiting

    def quote(self, demand: Demand) -> Outcome:
        """Answers what `admit` would, and takes nothing."""
        return self._answer(demand)[0]

    def admit(self, job_id: str, demand: Demand) -> Outcome:
        """Takes the job when its promise and all given ones hold; an answer that is no changes nothing."""
        outcome, booking = self._answer(demand, job_id)
        if booking is not None:
            self._wait(booking)
        return outcome

    def restore(
        self, job_id: str, *, layout: str, seconds: float, promise_in_s: float | None, expires_in_s: float | None = None
    ) -> Booking:
        """Takes a job that was admitted earlier, asking nothing: after a restart, in the order of admission."""
        now = self.clock()
        booking = Booking(
            job_id,
            layout=layout,
            seconds=seconds,
            work_s=self.limits.margin.charged_s(seconds),
            arrival=next(self._arrivals),
            finish_by=None if promise_in_s is None else now + promise_in_s,
            expires_at=None if expires_in_s is None else now + expires_in_s,
        )
        self._wait(booking)
        return booking

    def adopt(self, job_id: str, *, group: str) -> None:
        """Notes that a restored job runs on a group already, as its leader reports."""
        self._run(job_id, self._groups[group])

    def put_back(self, booking: Booking) -> None:
        """Lets a job wait once more, with the promise that it had: its group was lost."""
        self._wait(booking)

    def start_idle(self) -> dict[str, Booking]:
        """Returns by group the jobs that idle groups shall run now, and counts them as running.

        Call it after whatever may give a group work, before the next `admit`: jobs that wait beside idle groups are
        reckoned with as if they had to share them.
        """
        now, started = self._refresh(), {}
        for group in self._groups.values():
            job_id = self._pools[group.layout].next_job_id(now) if group.is_idle and not self.is_closed else None
            if job_id is not None:
                started[group.name] = self._run(job_id, group)
        return started

    def progress(self, job_id: str, *, blocks_left: int, block_seconds: float) -> None:
        """Takes what a leader reports at a block border: the rest will take as long per block as the last ones did."""
        assert blocks_left >= 0, f"{blocks_left} blocks left"
        group = self._running[job_id]
        rest_s = blocks_left * group.smoothed(max(0.0, block_seconds))
        group.free_at = self.clock() + self.limits.margin.charged_s(rest_s)

    def release(self, job_id: str) -> None:
        """Notes that a job runs no more, whatever its end: its group is idle."""
        group = self._running.pop(job_id)
        group.running, group.block_seconds, group.free_at = None, None, self.clock()

    def cancel(self, job_id: str) -> bool:
        """Takes a waiting job out; says False of one that does not wait (its leader has to stop it first)."""
        if job_id not in self._waiting:
            return False
        self._unwait(job_id)
        return True

    def take_expired(self) -> list[str]:
        """Returns the jobs that were dropped since it was last asked: their own deadline passed before they started."""
        self._refresh()
        expired, self._expired = self._expired, []
        return expired

    def add_group(self, name: str, *, layout: str, ready_in_s: float = 0.0) -> None:
        """Adds a group, or notes that it is back; with `ready_in_s`, plans on it from then, but starts nothing yet."""
        known = self._groups.get(name)
        assert known is None or known.running is None, f"group {name} runs a job"
        group = Group(name, layout, free_at=self.clock() + ready_in_s, is_ready=ready_in_s <= 0)
        self._groups[name] = group
        self._pool(layout).groups[name] = group

    def lose_group(self, name: str) -> Booking | None:
        """Forgets a group and returns the job that ran on it, which is of the ledger no more (`put_back`)."""
        group = self._groups.pop(name)
        del self._pools[group.layout].groups[name]
        if group.running is not None:
            del self._running[group.running.job_id]
        return group.running

    def drain_group(self, name: str) -> None:
        """Lets a group finish its job and gives it no other."""
        self._groups[name].is_draining = True

    def close(self) -> None:
        """Takes and starts nothing from now on; what runs goes on."""
        self.is_closed = True

    def place(self, job_id: str) -> Place | None:
        """Returns where a job stands that waits; None for one that does not."""
        booking = self._waiting.get(job_id)
        if booking is None:
            return None
        now = self._refresh()
        opening = self._pools[booking.layout].place_of(job_id, now)
        start_in_s = max(0.0, opening.start - now)
        return Place(opening.position, start_in_s, start_in_s + booking.seconds)

    def _answer(self, demand: Demand, job_id: str = "") -> tuple[Outcome, Booking | None]:
        now = self._refresh()
        if self.is_closed:
            return Rejected(Reason.DRAINING, "the service is shutting down"), None
        answers = [self._answer_of(layout, demand, job_id, now) for layout in demand.seconds]
        assert answers, "a demand that fits no layout is refused before it comes here"
        return min(answers, key=_preference)

    def _answer_of(self, layout: str, demand: Demand, job_id: str, now: float) -> tuple[Outcome, Booking | None]:
        seconds = demand.seconds[layout]
        patience_s = demand.deadline_s or default_deadline_s(demand.priority, seconds)
        finish_by = None if patience_s is None else now + patience_s
        booking = Booking(
            job_id,
            layout=layout,
            seconds=seconds,
            work_s=self.limits.margin.charged_s(seconds),
            arrival=next(self._arrivals),
            finish_by=finish_by,
            expires_at=None if demand.deadline_s is None else finish_by,
        )
        pool = self._pools.get(layout)
        opening = None if pool is None or len(self._waiting) >= self.limits.max_waiting else _place(pool, booking, now)
        if opening is None or opening.start == math.inf:
            return self._refusal(pool, booking, patience_s, now), None
        start_in_s = max(0.0, opening.start - now)
        return Admitted(
            Quote(
                layout=layout,
                seconds=seconds,
                promise_in_s=patience_s,
                start_in_s=start_in_s,
                finish_in_s=start_in_s + seconds,
                position=opening.position,
            )
        ), booking

    def _refusal(self, pool: Pool | None, booking: Booking, patience_s: float | None, now: float) -> Rejected:
        layout, work_s = booking.layout, booking.work_s
        if pool is None or not any(group.counts for group in pool.groups.values()):
            return Rejected(Reason.NO_GROUP, f"no group of layout {layout} is there")
        if patience_s is not None and patience_s < work_s:
            return Rejected(
                Reason.DEADLINE_TOO_SHORT,
                f"the video takes {work_s:.0f} s on layout {layout}, the deadline is in {patience_s:.0f} s",
                figures={"needed_s": work_s, "deadline_s": patience_s},
            )
        too_many = len(self._waiting) - self.limits.max_waiting + 1
        earliest = now if too_many <= 0 else departure_of(too_many, self._pools.values(), now)
        opening = earliest
        if patience_s is not None and earliest < math.inf:
            opening = pool.first_opening(work_s, patience_s=patience_s, now=now, earliest=earliest)
        retry_after_s = max(0.0, opening - now) if opening < math.inf else None
        if too_many > 0:
            return Rejected(Reason.QUEUE_FULL, f"{len(self._waiting)} jobs wait, which is the limit", retry_after_s)
        return Rejected(Reason.NO_CAPACITY, f"all groups of layout {layout} are promised to others", retry_after_s)

    def _refresh(self) -> float:
        now = self.clock()
        while self._expiring and self._expiring[0][0] <= now:
            expires_at, job_id = heappop(self._expiring)
            booking = self._waiting.get(job_id)
            if booking is not None and booking.expires_at == expires_at:
                self._unwait(job_id)
                self._expired.append(job_id)
        return now

    def _wait(self, booking: Booking) -> None:
        assert booking.job_id not in self._waiting, f"{booking.job_id} waits already"
        assert booking.job_id not in self._running, f"{booking.job_id} runs"
        self._pool(booking.layout).add(booking, self.clock())
        self._waiting[booking.job_id] = booking
        if booking.expires_at is not None:
            heappush(self._expiring, (booking.expires_at, booking.job_id))

    def _unwait(self, job_id: str) -> Booking:
        booking = self._waiting.pop(job_id)
        self._pools[booking.layout].remove(job_id, self.clock())
        return booking

    def _run(self, job_id: str, group: Group) -> Booking:
        assert group.running is None, f"group {group.name} runs {group.running}"
        booking, now = self._waiting.pop(job_id), self.clock()
        self._pools[booking.layout].take(job_id, now)
        group.running, group.is_ready, group.free_at = booking, True, now + booking.work_s
        self._running[job_id] = group
        return booking

    def _pool(self, layout: str) -> Pool:
        return self._pools.setdefault(layout, Pool(layout, self.limits.bulk_floor))


def _place(pool: Pool, booking: Booking, now: float) -> Opening | None:
    return pool.place_of_bulk(now) if booking.finish_by is None else pool.place(booking.entry(), now)


def _preference(answer: tuple[Outcome, Booking | None]) -> tuple[bool, float]:
    """A yes before a no; of those the earliest finish, of these the earliest next try."""
    match answer[0]:
        case Admitted(quote):
            return False, quote.finish_in_s
        case Rejected(retry_after_s=retry_after_s):
            return True, math.inf if retry_after_s is None else retry_after_s
