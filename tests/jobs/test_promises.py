"""What the ledger promises holds, whatever comes: properties over worlds of requests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from serve_app.jobs.job import Priority
from serve_app.jobs.quote import Rejected
from tests.jobs.world import World

LATE_S = 1e-3
"""What sums of floating point numbers may be late by."""
SECONDS = st.one_of(st.integers(1, 30).map(float), st.floats(0.5, 300))
DEADLINES = st.one_of(st.none(), st.integers(1, 200).map(float), st.floats(1, 1000))
PRIORITIES = st.sampled_from(list(Priority))
LAYOUTS = st.lists(st.sampled_from(["single", "stages=4,vae=1"]), min_size=1, max_size=5).map(tuple)


class Service(RuleBasedStateMachine):
    """Requests come, time passes, waiting jobs are cancelled; all takes as long as `pace` says of its prediction."""

    pace = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.cancelled: set[str] = set()

    @initialize(layouts=LAYOUTS, bulk_floor=st.sampled_from([0.0, 0.1, 0.5]), max_waiting=st.sampled_from([4, 10_000]))
    def open(self, layouts: tuple[str, ...], bulk_floor: float, max_waiting: int) -> None:
        self.world = World(layouts, bulk_floor=bulk_floor, max_waiting=max_waiting, pace=self.pace)

    @rule(seconds=SECONDS, deadline_s=DEADLINES, priority=PRIORITIES, factor=st.sampled_from([1.0, 1.0, 3.0]))
    def ask(self, seconds: float, deadline_s: float | None, priority: Priority, factor: float) -> None:
        by_layout = {layout: seconds * (factor if layout == "single" else 1) for layout in set(self.world.layouts)}
        outcome = self.world.ask(by_layout, deadline_s=deadline_s, priority=priority)
        if isinstance(outcome, Rejected) and outcome.retry_after_s is not None and self.pace == 1.0:
            later = self.world.copy()
            later.pass_time(outcome.retry_after_s)
            assert later.accepts(by_layout, deadline_s=deadline_s, priority=priority), outcome

    @rule(seconds=SECONDS, number=st.integers(1, 20), priority=PRIORITIES)
    def ask_much(self, seconds: float, number: int, priority: Priority) -> None:
        for _ in range(number):
            self.world.ask(seconds, priority=priority)

    @rule(seconds=st.one_of(st.floats(0, 10), st.floats(0, 1000)))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(number=st.integers(0, 1000))
    def cancel(self, number: int) -> None:
        waiting = sorted(self.world.accepted - self.world.running - self.world.finished.keys() - self.cancelled)
        if waiting and self.world.ledger.cancel(job_id := waiting[number % len(waiting)]):
            self.cancelled.add(job_id)

    @invariant()
    def every_accepted_job_is_somewhere(self) -> None:
        world = self.world
        done = len(world.finished) + len(self.cancelled) + len(world.dropped)
        assert len(world.accepted) == world.ledger.num_waiting + len(world.running) + done

    @invariant()
    def no_promise_is_broken(self) -> None:
        late = {job: end - self.world.promises[job] for job, end in self.world.finished.items()}
        assert max(late.values(), default=0.0) <= LATE_S

    def teardown(self) -> None:
        self.world.finish_all()
        self.no_promise_is_broken()
        assert self.world.accepted == self.world.finished.keys() | self.cancelled
        assert not self.world.dropped


class FasterService(Service):
    """Jobs end sooner than predicted."""

    pace = 0.6


@pytest.mark.parametrize("service", [Service, FasterService])
def test_no_promise_is_broken_no_job_is_lost_and_retry_after_is_honest(service: type[Service]) -> None:
    run_state_machine_as_test(
        service,
        settings=settings(
            max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
