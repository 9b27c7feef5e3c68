"""A job's life: what may follow what, and what becomes of it when its group is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from serve_app.jobs.errors import IllegalTransitionError, StaleAttemptError
from serve_app.jobs.job import (
    MAX_ATTEMPTS,
    NEXT_STATES,
    Job,
    JobError,
    JobState,
    Priority,
    cancel,
    complete,
    fail,
    fail_attempt,
    lose_group,
    new_job_id,
    report,
    request_cancel,
    start,
)

QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED = JobState
GROUP_LOST = JobError("group_lost", "rank 2 died")


def job(state: JobState = QUEUED, attempt: int = 1) -> Job:
    return Job(
        id="video_1",
        state=state,
        attempt=attempt,
        spec={},
        inputs={},
        layout="single",
        predicted_s=60.0,
        priority=Priority.STANDARD,
        created_at=100.0,
    )


def lost(of: Job, *, has_brought_down: bool = False) -> Job:
    return lose_group(of, attempt=of.attempt, at=200.0, cause=GROUP_LOST, has_brought_down=has_brought_down)


MOVES: dict[str, tuple[Callable[[Job], Job], JobState, set[JobState]]] = {
    "start": (lambda of: start(of, group="g0", at=110.0), RUNNING, {QUEUED}),
    "complete": (
        lambda of: complete(of, attempt=of.attempt, at=200.0, location="s3://b/v.mp4", result={}),
        COMPLETED,
        {RUNNING},
    ),
    "fail": (lambda of: fail(of, at=200.0, error=GROUP_LOST), FAILED, {QUEUED, RUNNING}),
    "cancel": (lambda of: cancel(of, at=200.0), CANCELLED, {QUEUED, RUNNING}),
    "lose_group": (lost, QUEUED, {RUNNING}),
}


@pytest.mark.parametrize("before", JobState)
@pytest.mark.parametrize("move", MOVES)
def test_a_move_is_legal_from_some_states_and_names_both_states_from_others(move: str, before: JobState) -> None:
    make, after, allowed = MOVES[move]
    if before in allowed:
        assert make(job(before)).state is after
        return
    with pytest.raises(IllegalTransitionError) as refused:
        make(job(before))
    assert f"is {before} and cannot become {after}" in str(refused.value)


def test_the_table_of_states_is_what_the_moves_do() -> None:
    moves = {(before, after) for make, after, allowed in MOVES.values() for before in allowed}
    assert moves == {(before, after) for before, nexts in NEXT_STATES.items() for after in nexts}
    assert [state for state in JobState if state.is_final] == [COMPLETED, FAILED, CANCELLED]


def test_a_lost_group_costs_an_attempt_and_what_was_made() -> None:
    running = report(start(job(), group="g0", at=1.0), attempt=1, blocks_done=5, num_blocks=10)
    again = lost(running)
    assert (again.state, again.attempt, again.group, again.started_at, again.blocks_done) == (QUEUED, 2, None, None, 0)


def test_progress_never_falls_and_is_whole_only_when_the_video_is_committed() -> None:
    running = report(start(job(), group="g0", at=1.0), attempt=1, blocks_done=10, num_blocks=10)
    assert running.progress == 99
    second = report(start(lost(running), group="g1", at=2.0), attempt=2, blocks_done=1, num_blocks=10)
    assert second.progress == 99
    assert complete(second, attempt=2, at=3.0, location="v.mp4", result={}).progress == 100


def test_the_third_attempt_is_the_last() -> None:
    assert MAX_ATTEMPTS == 3
    third = lost(replace(lost(job(RUNNING)), state=RUNNING))
    assert (third.state, third.attempt) == (QUEUED, 3)
    ended = lost(replace(third, state=RUNNING))
    assert (ended.state, ended.error, ended.finished_at) == (FAILED, GROUP_LOST, 200.0)


def test_a_job_that_brings_down_a_second_group_fails_with_the_cause() -> None:
    second = lost(job(RUNNING), has_brought_down=True)
    assert second.state is QUEUED
    ended = lost(replace(second, state=RUNNING), has_brought_down=True)
    assert (ended.state, ended.attempt, ended.error) == (FAILED, 2, GROUP_LOST)


def test_a_lost_group_ends_a_job_that_was_to_be_cancelled() -> None:
    asked = request_cancel(job(RUNNING), at=150.0)
    assert (asked.state, asked.is_cancel_requested) == (RUNNING, True)
    assert lost(asked).state is CANCELLED


def test_a_queued_job_is_cancelled_at_once() -> None:
    assert request_cancel(job(), at=150.0).state is CANCELLED


@pytest.mark.parametrize(
    "speak",
    [
        lambda of: report(of, attempt=1, blocks_done=1, num_blocks=2),
        lambda of: complete(of, attempt=1, at=1.0, location="v.mp4", result={}),
        lambda of: fail_attempt(of, attempt=1, at=1.0, error=GROUP_LOST),
        lambda of: lose_group(of, attempt=1, at=1.0, cause=GROUP_LOST, has_brought_down=False),
    ],
)
def test_an_attempt_that_was_given_up_has_no_say(speak: Callable[[Job], Job]) -> None:
    with pytest.raises(StaleAttemptError, match="is at attempt 2, the report is of attempt 1"):
        speak(job(RUNNING, attempt=2))


def test_no_progress_is_taken_from_a_job_that_does_not_run() -> None:
    with pytest.raises(IllegalTransitionError, match="is completed, so it makes no progress"):
        report(job(COMPLETED), attempt=1, blocks_done=1, num_blocks=2)


def test_ids_are_long_and_differ() -> None:
    assert new_job_id() != new_job_id()
    assert len(new_job_id()) == len("video_") + 32
