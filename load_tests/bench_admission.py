"""Times the admission ledger: decisions per second, and the time of one, with 5 000 jobs waiting.

python load_tests/bench_admission.py [WAITING [GROUPS]]

Twice the work comes that the groups can do, of all classes; meanwhile jobs end, others start, and every group reports
its pace once a second, which moves all moments of the schedule. Only the decisions are timed.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from serve_app.jobs.job import Priority
from serve_app.jobs.ledger import Ledger
from serve_app.jobs.quote import STANDARD_DEADLINE_S, Admitted, Demand

NUM_WAITING = 5_000
NUM_GROUPS = 16
NUM_DECISIONS = 20_000
LAYOUT = "single"
OVERLOAD = 2.0
NOISE = 0.02
FILLING = 0.85
"""What the jobs that wait take of the groups' time until the last promise, margins not counted."""
CLASSES = {Priority.INTERACTIVE: 0.3, Priority.STANDARD: 0.6, Priority.BULK: 0.1}


@dataclass
class Load:
    """Requests and groups, on a clock of their own; `seconds` is what a video takes on the average."""

    num_groups: int
    seconds: float
    now: float = 0.0
    reported_at: float = 0.0
    asked: int = 0
    ends: dict[str, tuple[float, str]] = field(default_factory=dict)
    random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311  (a load, no secret)

    def __post_init__(self) -> None:
        self.ledger = Ledger(lambda: self.now)
        for number in range(self.num_groups):
            self.ledger.add_group(f"g{number}", layout=LAYOUT)

    def fill(self, num_waiting: int) -> None:
        """Takes jobs until so many wait, due in the order in which they came."""
        while self.ledger.num_waiting < num_waiting:
            promise_in_s = STANDARD_DEADLINE_S * (self.ledger.num_waiting + 1) / num_waiting
            self.ledger.restore(self._id(), layout=LAYOUT, seconds=self._length(), promise_in_s=promise_in_s)

    def decide(self) -> tuple[float, float, bool]:
        """Asks for one video and returns how long the answer took, its time on the processor, and if it was yes."""
        (priority,) = self.random.choices(list(CLASSES), list(CLASSES.values()))
        demand, job_id = Demand({LAYOUT: self._length()}, priority), self._id()
        started, started_cpu = time.perf_counter(), time.thread_time()
        outcome = self.ledger.admit(job_id, demand)
        ended_cpu, ended = time.thread_time(), time.perf_counter()
        return ended - started, ended_cpu - started_cpu, isinstance(outcome, Admitted)

    def pass_time(self) -> None:
        """Lets the time between two requests pass, with what groups do in it."""
        self.now += self.random.expovariate(OVERLOAD * self.num_groups / self.seconds)
        for name in [name for name, (end, _) in self.ends.items() if end <= self.now]:
            self.ledger.release(self.ends.pop(name)[1])
        for name, booking in self.ledger.start_idle().items():
            self.ends[name] = (self.now + booking.seconds * self.random.gauss(1.0, NOISE), booking.job_id)
        if self.now - self.reported_at >= 1:
            self.reported_at = self.now
            for end, job_id in self.ends.values():
                rest_s = (end - self.now) * self.random.gauss(1.0, NOISE)
                self.ledger.progress(job_id, blocks_left=1, block_seconds=rest_s)

    def _length(self) -> float:
        return self.seconds * self.random.choice((0.25, 0.5, 1.0, 1.0, 2.25))

    def _id(self) -> str:
        self.asked += 1
        return f"job{self.asked}"


def main(arguments: list[str]) -> int:
    """Prints two lines: by the clock, and by the processor's time, which other programs do not lengthen."""
    num_waiting, num_groups = (*map(int, arguments), *(NUM_WAITING, NUM_GROUPS)[len(arguments) :])
    load = Load(num_groups, seconds=FILLING * STANDARD_DEADLINE_S * num_groups / num_waiting)
    load.fill(num_waiting)
    decisions, waiting = [], []
    for _ in range(NUM_DECISIONS):
        decisions.append(load.decide())
        load.pass_time()
        waiting.append(load.ledger.num_waiting)
    wall, cpu, accepted = zip(*decisions, strict=True)
    sys.stdout.write(
        f"admission: {min(waiting)} to {max(waiting)} waiting, {num_groups} groups, "
        f"{sum(accepted) / len(accepted):.0%} of {len(accepted)} accepted\n"
        f"  by the clock    {_figures(wall)}\n  processor time  {_figures(cpu)}\n"
    )
    return 0


def _figures(took_s: Sequence[float]) -> str:
    percentiles = statistics.quantiles(took_s, n=100)
    return (
        f"{len(took_s) / sum(took_s):.0f} decisions/s, p50 {percentiles[49] * 1e3:.3f} ms, "
        f"p99 {percentiles[98] * 1e3:.3f} ms, longest {max(took_s) * 1e3:.1f} ms"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
