"""What the ledger promises holds, whatever comes: properties over worlds of requests."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from serve_app.jobs.job import Priority
from serve_app.jobs.quote import Admitted, Demand, Rejected
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


class TroubledService(Service):
    """Groups are lost and come back, jobs turn out longer or shorter: promises may break, all else still holds."""

    @rule(number=st.integers(0, 10))
    def lose_group(self, number: int) -> None:
        names = sorted(self.world.ledger.groups)
        if names:
            self.world.lose(names[number % len(names)])

    @rule(number=st.integers(0, 10))
    def bring_back(self, number: int) -> None:
        lost = [index for index in range(len(self.world.layouts)) if f"g{index}" not in self.world.ledger.groups]
        if lost:
            index = lost[number % len(lost)]
            self.world.bring_back(f"g{index}", layout=self.world.layouts[index])

    @rule(number=st.integers(0, 10), rest_s=SECONDS)
    def reestimate(self, number: int, rest_s: float) -> None:
        names = sorted(self.world.ends)
        if names:
            self.world.reestimate(names[number % len(names)], rest_s=rest_s)

    def no_promise_is_broken(self) -> None:
        """Is not to be had here."""

    def teardown(self) -> None:
        for index, layout in enumerate(self.world.layouts):
            if f"g{index}" not in self.world.ledger.groups:
                self.world.bring_back(f"g{index}", layout=layout)
        self.world.finish_all()
        self.every_accepted_job_is_somewhere()
        assert self.world.ledger.num_waiting == 0


@pytest.mark.parametrize("service", [Service, FasterService, TroubledService])
@pytest.mark.parametrize("max_steps", [128, 2])
def test_no_promise_is_broken_no_job_is_lost_and_retry_after_is_honest(
    service: type[Service], max_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.jobs.queue.BUCKET_SIZE", 2)
    monkeypatch.setattr("serve_app.jobs.forecast.MAX_STEPS", max_steps)
    run_state_machine_as_test(
        service,
        settings=settings(
            max_examples=80,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@given(
    jobs=st.lists(st.tuples(SECONDS, st.floats(1, 6)), min_size=1, max_size=12),
    seconds=SECONDS,
    patience=st.floats(1, 6),
    part=st.floats(0, 0.999),
)
@settings(deadline=None, max_examples=200)
def test_on_one_group_retry_after_is_the_first_moment(
    jobs: list[tuple[float, float]], seconds: float, patience: float, part: float
) -> None:
    world, demand = World(), Demand({"single": seconds}, deadline_s=seconds * patience)
    for work_s, factor in jobs:
        world.ask(work_s, deadline_s=work_s * factor)
    refused = world.ledger.quote(demand)
    if isinstance(refused, Rejected) and refused.retry_after_s is not None:
        world.pass_time(refused.retry_after_s * part)
        again = world.ledger.quote(demand)
        assert isinstance(again, Rejected) or refused.retry_after_s * (1 - part) < LATE_S
        world.pass_time(refused.retry_after_s * (1 - part))
        assert isinstance(world.ledger.quote(demand), Admitted)


def test_bulk_that_waits_has_its_floor_while_promises_fill_all_groups_and_hold() -> None:
    world, chance = World(("single",) * 3, bulk_floor=0.1), random.Random(0)
    for _ in range(200):
        assert world.accepts(chance.uniform(20, 200), priority=Priority.BULK)
    bulk = set(world.accepted)
    refused = 0
    while world.clock.now < 20_000:
        seconds = chance.uniform(10, 100)
        refused += not world.accepts(seconds, deadline_s=seconds + chance.uniform(100, 2_000))
        world.pass_time(chance.uniform(0, 20))
    busy_s = {job: world.busy_s[job] for job in world.finished}
    share = sum(seconds for job, seconds in busy_s.items() if job in bulk) / sum(busy_s.values())
    assert refused > 100
    assert 0.08 < share < 0.13
    assert all(end <= world.promises[job] + LATE_S for job, end in world.finished.items())


def test_bulk_alone_has_all_groups() -> None:
    world = World(("single",) * 2)
    for _ in range(6):
        world.ask(10.0, priority=Priority.BULK)
    world.pass_time(30.0)
    assert len(world.finished) == 6


def test_bulk_that_takes_its_place_passes_none_of_those_that_wait() -> None:
    world = World(bulk_floor=0.5)
    world.ask(10.0, deadline_s=10.0)
    world.ask(4.0, priority=Priority.BULK)
    for _ in range(3):
        assert world.accepts(10.0, deadline_s=40.0)
    world.finish_all()
    assert world.started == ["job0", "job2", "job3", "job4", "job1"]


def test_bulk_that_ran_when_nothing_else_waited_earns_anew() -> None:
    world = World(bulk_floor=0.1)
    world.ask(100.0, deadline_s=100.0)
    world.ask(20.0, priority=Priority.BULK)
    world.ask(5.0, priority=Priority.BULK)
    world.pass_time(101.0)
    assert world.accepts(10.0, deadline_s=100.0)
    world.finish_all()
    assert world.started == ["job0", "job1", "job3", "job2"]


def test_bulk_that_ran_when_nothing_else_waited_has_used_up_what_it_had_earned() -> None:
    world = World(bulk_floor=0.1)
    world.ask(116.0 * 3, priority=Priority.INTERACTIVE)
    for seconds in (25.0, 13.0, 1.0):
        world.ask(seconds, priority=Priority.BULK)
    refused = world.ask(1.0, priority=Priority.INTERACTIVE)
    assert isinstance(refused, Rejected)
    assert refused.retry_after_s is not None
    world.pass_time(refused.retry_after_s)
    assert world.accepts(1.0, priority=Priority.INTERACTIVE)
