"""The queue and what groups can do: held to the plain way of computing it."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.jobs.queue import ROUNDING_S, Entry, Queue
from serve_app.jobs.supply import Supply

MOMENTS = st.lists(st.integers(0, 50).map(float), min_size=1, max_size=6)


def played(free_at: list[float], work_s: float) -> float:
    """Returns when a job behind `work_s` of endlessly divisible work starts: step by step, group by group."""
    moment, rest = min(free_at), work_s
    while rest > 0:
        rest -= 0.25 * sum(free <= moment for free in free_at)
        moment += 0.25
    return moment


@given(free_at=MOMENTS, quarters=st.integers(0, 200))
@settings(deadline=None)
def test_supply_is_what_free_groups_can_do(free_at: list[float], quarters: int) -> None:
    supply, work_s = Supply(free_at), quarters / 4
    assert supply.when(work_s) <= played(free_at, work_s) < supply.when(work_s) + 0.25
    assert supply.by(supply.when(work_s)) == pytest.approx(work_s)


@given(free_at=MOMENTS, moment=st.floats(0, 100), delay=st.floats(0, 50))
@settings(deadline=None)
def test_a_delay_costs_no_more_supply_than_it_is_long(free_at: list[float], moment: float, delay: float) -> None:
    later = Supply([free_at[0] + delay, *free_at[1:]])
    assert Supply(free_at).by(moment) - delay - ROUNDING_S <= later.by(moment) <= Supply(free_at).by(moment)


def test_without_groups_there_is_no_supply() -> None:
    assert Supply(()).by(1e9) == -math.inf
    assert Supply(()).when(0.0) == math.inf


class PlainQueue:
    """The same answers from a sorted list."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        self.entries = sorted([*self.entries, entry], key=lambda one: one.key)

    def remove(self, job_id: str) -> None:
        self.entries = [entry for entry in self.entries if entry.job_id != job_id]

    def before(self, entry: Entry) -> list[Entry]:
        return self.entries[: self.entries.index(entry)]

    def last_in_the_way(self, work_s: float, *, behind: float, supply: Supply) -> Entry | None:
        in_the_way = [
            entry
            for entry in self.entries
            if entry.finish_by > behind
            and entry.is_promised
            and sum(one.work_s for one in self.before(entry)) + work_s
            > supply.by(entry.finish_by - entry.work_s) + ROUNDING_S
        ]
        return in_the_way[-1] if in_the_way else None


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_buckets_answer_as_a_sorted_list_does(seed: int) -> None:
    chance, queue, plain = random.Random(seed), Queue(), PlainQueue()
    free_at, drift = [0.0] * chance.randint(1, 4), 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve_app.jobs.queue.BUCKET_SIZE", chance.choice([1, 2, 5]))
        for arrival in range(80):
            match chance.random():
                case dice if dice < 0.6:
                    due = chance.uniform(0, 400)
                    entry = Entry(f"job{arrival}", chance.uniform(1, 9), due, arrival, chance.random() < 0.8)
                    queue.add(entry)
                    plain.add(entry)
                case dice if dice < 0.8 and plain.entries:
                    job_id = chance.choice(plain.entries).job_id
                    queue.remove(job_id)
                    plain.remove(job_id)
                case _:
                    index, moment = chance.randrange(len(free_at)), chance.uniform(0, 200)
                    drift += max(0.0, moment - free_at[index])
                    free_at[index] = moment
            check(queue, plain, Supply(free_at, drift=drift), chance)


def check(queue: Queue, plain: PlainQueue, supply: Supply, chance: random.Random) -> None:
    assert list(queue) == plain.entries
    assert (queue.first, queue.last) == ((plain.entries[0], plain.entries[-1]) if plain.entries else (None, None))
    moment, work_s = chance.uniform(-10, 410), chance.uniform(0, 50)
    due = [entry for entry in plain.entries if entry.finish_by <= moment]
    jobs, due_s = queue.due_by(moment)
    assert (jobs, due_s) == (len(due), pytest.approx(sum(entry.work_s for entry in due)))
    assert queue.work_s == pytest.approx(sum(entry.work_s for entry in plain.entries))
    found = queue.last_in_the_way(work_s, behind=moment, supply=supply)
    assert found == plain.last_in_the_way(work_s, behind=moment, supply=supply)
    for entry in plain.entries[:3]:
        position, before_s = queue.ahead_of(entry)
        assert position == len(plain.before(entry))
        assert before_s == pytest.approx(sum(one.work_s for one in plain.before(entry)))


def test_of_jobs_due_at_the_same_moment_the_first_come_stands_first() -> None:
    queue = Queue()
    for arrival in (2, 0, 1):
        queue.add(Entry(f"job{arrival}", 1.0, 100.0, arrival))
    assert [entry.job_id for entry in queue] == ["job0", "job1", "job2"]


@pytest.mark.parametrize(("work_s", "finish_by"), [(0.0, 1.0), (-1.0, 1.0), (math.inf, 1.0), (1.0, math.inf)])
def test_numbers_that_would_spoil_every_sum_do_not_get_in(work_s: float, finish_by: float) -> None:
    with pytest.raises(AssertionError):
        Queue().add(Entry("job", work_s, finish_by, 0))
