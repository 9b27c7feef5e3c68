"""A world in which jobs take their time: a clock, a ledger, and groups that start whatever the ledger gives them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

from serve_app.jobs.job import Priority
from serve_app.jobs.ledger import Ledger, LedgerLimits
from serve_app.jobs.quote import Admitted, Demand, Margin, Outcome, Rejected

EXACT = Margin(ratio=0.0, per_job_s=0.0)


@dataclass
class Clock:
    """Seconds that pass when told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """Groups work without a pause; `pace` is how long a job takes as a part of what was set aside for it."""

    layouts: tuple[str, ...] = ("single",)
    margin: Margin = EXACT
    bulk_floor: float = 0.1
    max_waiting: int = 10_000
    pace: float = 1.0
    clock: Clock = field(default_factory=Clock)
    promises: dict[str, float] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)
    started: list[str] = field(default_factory=list)
    finished: dict[str, float] = field(default_factory=dict)
    busy_s: dict[str, float] = field(default_factory=dict)
    ends: dict[str, tuple[float, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limits = LedgerLimits(margin=self.margin, bulk_floor=self.bulk_floor, max_waiting=self.max_waiting)
        self.ledger = Ledger(self.clock, limits)
        for number, layout in enumerate(self.layouts):
            self.ledger.add_group(f"g{number}", layout=layout)

    def ask(
        self,
        seconds: float | dict[str, float],
        *,
        deadline_s: float | None = None,
        priority: Priority = Priority.STANDARD,
    ) -> Outcome:
        """Asks for a job, and lets idle groups start."""
        by_layout = seconds if isinstance(seconds, dict) else dict.fromkeys(self.layouts, seconds)
        job_id = f"job{len(self.accepted)}"
        outcome = self.ledger.admit(job_id, Demand(by_layout, priority, deadline_s))
        match outcome:
            case Admitted(quote):
                self.accepted.add(job_id)
                self.promises[job_id] = self.clock.now + (quote.promise_in_s or math.inf)
                self.start_idle()
            case Rejected():
                pass
        return outcome

    def accepts(self, seconds: float | dict[str, float], **wish: object) -> bool:
        return isinstance(self.ask(seconds, **wish), Admitted)  # type: ignore[arg-type]

    def start_idle(self) -> None:
        for name, booking in self.ledger.start_idle().items():
            took_s = booking.work_s * self.pace
            self.ends[name] = (self.clock.now + took_s, booking.job_id)
            self.started.append(booking.job_id)
            self.busy_s[booking.job_id] = took_s
        self.dropped.update(self.ledger.take_expired())

    def pass_time(self, seconds: float) -> None:
        """Lets time pass, job ends and starts at their moments."""
        until = self.clock.now + seconds
        while self.ends and min(self.ends.values())[0] <= until:
            name = min(self.ends, key=lambda one: self.ends[one])
            moment, job_id = self.ends.pop(name)
            self.clock.now = max(self.clock.now, moment)
            self.finished[job_id] = moment
            self.ledger.release(job_id)
            if not any(end <= moment for end, _ in self.ends.values()):
                self.start_idle()
        self.clock.now = until
        self.start_idle()

    def lose(self, name: str) -> None:
        """Loses a group; its job waits again."""
        self.ends.pop(name, None)
        lost = self.ledger.lose_group(name)
        if lost is not None:
            self.ledger.put_back(lost)
        self.start_idle()

    def bring_back(self, name: str, *, layout: str, ready_in_s: float = 0.0) -> None:
        self.ledger.add_group(name, layout=layout, ready_in_s=ready_in_s)
        self.start_idle()

    def reestimate(self, name: str, *, rest_s: float) -> None:
        """A leader reports that its job will take so long from now on, and so it will."""
        _, job_id = self.ends[name]
        self.ends[name] = (self.clock.now + rest_s, job_id)
        self.ledger.progress(job_id, blocks_left=1, block_seconds=rest_s)
        self.ledger.groups[name].block_seconds = None

    def finish_all(self) -> None:
        while self.ends:
            self.pass_time(min(self.ends.values())[0] - self.clock.now)

    def copy(self) -> World:
        return copy.deepcopy(self)

    @property
    def running(self) -> set[str]:
        return {job_id for _, job_id in self.ends.values()}
