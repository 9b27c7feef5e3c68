"""Dispatchers that are killed at any moment, and two that live at once."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from serve_app.jobs.events import EventKind
from serve_app.jobs.job import JobState
from serve_app.jobs.store import JobReader
from tests.jobs.dispatcher_process import OVERTAKEN

ROOT = Path(__file__).parents[2]
NUM_KILLS = 6
PATIENCE_S = 60


def dispatcher(store: Path) -> subprocess.Popen[str]:
    """Starts a Dispatcher and returns when it has taken the store over."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.jobs.dispatcher_process", str(store)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch ")
    return process


def said(process: subprocess.Popen[str], *, at_most: int | None = None) -> list[tuple[str, str]]:
    """Returns what a process says of which jobs: so many lines, or all until it ends; its last line may be cut."""
    assert process.stdout is not None
    lines = itertools.islice(process.stdout, at_most)
    return [(words[0], words[1]) for line in lines if line.endswith("\n") and (words := line.split())]


def told(lines: list[tuple[str, str]], what: str) -> list[str]:
    return [job_id for verb, job_id in lines if verb == what]


def test_a_dispatcher_killed_at_any_moment_loses_no_job_and_completes_none_twice(tmp_path: Path) -> None:
    store, lines, chance = tmp_path / "jobs.sqlite", [], random.Random(0)
    for _ in range(NUM_KILLS):
        with dispatcher(store) as process:
            lines += said(process, at_most=chance.randint(1, 9))
            time.sleep(chance.uniform(0, 0.03))
            process.kill()
            lines += said(process)
    accepted, completed, reader = told(lines, "accepted"), told(lines, "completed"), JobReader.open(store)
    jobs = {job_id: reader.get(job_id) for job_id in accepted}
    assert len(jobs) > NUM_KILLS
    assert len(completed) == len(set(completed)) > 0
    assert {jobs[job_id].state for job_id in completed if job_id in jobs} == {JobState.COMPLETED}
    for job_id in jobs:
        events = reader.events(job_id)
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert sum(event.kind is EventKind.COMPLETED for event in events) == (jobs[job_id].state is JobState.COMPLETED)
        assert len([event for event in events if event.kind is EventKind.STARTED]) <= 3
    reader.close()


def test_a_dispatcher_that_was_overtaken_writes_no_more_and_ends(tmp_path: Path) -> None:
    store = tmp_path / "jobs.sqlite"
    with dispatcher(store) as first:
        before = said(first, at_most=3)
        with dispatcher(store) as second:
            before += said(first)
            assert first.wait(PATIENCE_S) == OVERTAKEN
            after = said(second, at_most=6)
            second.kill()
    assert len(told(before, "completed")) > 0
    assert len(told(after, "completed")) > 0
    assert not set(told(before, "completed")) & set(told(after, "completed"))
