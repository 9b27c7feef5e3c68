"""A job: one accepted video, from the queue to its end, and the only ways in which its state may change.

    queued -> running -> completed | failed | cancelled
    running -> queued                 its group was lost: another attempt
    queued -> failed | cancelled      dropped before it started

Pure values: a transition takes a job and returns the next one. Times are wall-clock seconds since 1970.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from serve_app.jobs.errors import IllegalTransitionError, StaleAttemptError

MAX_ATTEMPTS = 3
MAX_GROUPS_BROUGHT_DOWN = 2
PROGRESS_BEFORE_COMMIT = 99

Document = Mapping[str, Any]
"""A JSON object."""


class JobState(enum.StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return not NEXT_STATES[self]


NEXT_STATES: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
        JobState.RUNNING: frozenset({JobState.QUEUED, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}),
        JobState.COMPLETED: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELLED: frozenset(),
    }
)


class Priority(enum.StrEnum):
    """A class of requests; classes differ in their default deadline only (`quote.default_deadline_s`)."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BULK = "bulk"


@dataclass(frozen=True)
class JobError:
    """Why a job failed: a stable code and a sentence for people."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What an admitted request brings. `predicted_s` is what it takes alone on `layout`.

    `promised_at` is the latest finish that was promised, None for bulk. `expires_at`, if the request named a
    deadline, is when nobody wants the video any more.
    """

    spec: Document
    inputs: Document
    layout: str
    predicted_s: float
    priority: Priority
    promised_at: float | None = None
    expires_at: float | None = None
    metadata: Document = field(default_factory=dict)
    quote: Document = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job(NewJob):
    """One job as the store holds it. `progress` is in percent and never falls, not even with a second attempt.

    `attempt` counts from 1. `started_at`, `group` and `blocks_done` are of the present attempt.
    """

    id: str
    state: JobState
    created_at: float
    attempt: int = 1
    groups_brought_down: int = 0
    group: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    blocks_done: int = 0
    num_blocks: int = 0
    progress: int = 0
    is_cancel_requested: bool = False
    location: str | None = None
    result: Document = field(default_factory=dict)
    error: JobError | None = None


def new_job_id() -> str:
    return f"video_{secrets.token_hex(16)}"


def start(job: Job, *, group: str, at: float) -> Job:
    """Returns the job as it begins to run on `group`."""
    return replace(_to(job, JobState.RUNNING), group=group, started_at=at, blocks_done=0)


def report(job: Job, *, attempt: int, blocks_done: int, num_blocks: int) -> Job:
    """Returns the job with its present attempt's progress; raises unless that attempt runs."""
    _check_attempt(job, attempt)
    if job.state is not JobState.RUNNING:
        raise IllegalTransitionError(
            f"job {job.id} is {job.state}, so it makes no progress", remedy="stop this attempt", param="id"
        )
    if not 0 <= blocks_done <= num_blocks:
        raise ValueError(f"{blocks_done} blocks done of {num_blocks}")
    percent = min(PROGRESS_BEFORE_COMMIT, 100 * blocks_done // max(1, num_blocks))
    return replace(job, blocks_done=blocks_done, num_blocks=num_blocks, progress=max(job.progress, percent))


def complete(job: Job, *, attempt: int, at: float, location: str, result: Document) -> Job:
    """Returns the job as done: its video is committed at `location`."""
    _check_attempt(job, attempt)
    ended = replace(_to(job, JobState.COMPLETED), finished_at=at, progress=100)
    return replace(ended, location=location, result=result)


def fail(job: Job, *, at: float, error: JobError) -> Job:
    """Returns the job as failed for good."""
    return replace(_to(job, JobState.FAILED), finished_at=at, error=error)


def fail_attempt(job: Job, *, attempt: int, at: float, error: JobError) -> Job:
    """Returns the job as failed for good by its running attempt."""
    _check_attempt(job, attempt)
    return fail(job, at=at, error=error)


def drop(job: Job, *, at: float, error: JobError) -> Job:
    """Returns a job that still waits as failed: nobody wants it any more, or nothing can run it."""
    if job.state is JobState.RUNNING:
        raise IllegalTransitionError(
            f"job {job.id} is {job.state}, so it cannot be dropped before it starts",
            remedy="name the attempt that failed",
            param="id",
        )
    return fail(job, at=at, error=error)


def request_cancel(job: Job, *, at: float) -> Job:
    """Returns a queued job as cancelled; a running one goes on until its leader has stopped it (`cancel`)."""
    if job.state is JobState.RUNNING:
        return replace(job, is_cancel_requested=True)
    return cancel(job, at=at)


def cancel(job: Job, *, at: float) -> Job:
    """Returns the job as cancelled: nothing of it runs any more."""
    return replace(_to(job, JobState.CANCELLED), finished_at=at)


def cancel_attempt(job: Job, *, attempt: int, at: float) -> Job:
    """Returns the job as cancelled: its running attempt was stopped."""
    _check_attempt(job, attempt)
    return cancel(job, at=at)


def lose_group(job: Job, *, attempt: int, at: float, cause: JobError, has_brought_down: bool) -> Job:
    """Returns what becomes of a running job whose group is gone: another attempt, while it has one left.

    It fails with `cause` after MAX_ATTEMPTS attempts, or when it was itself what brought down a second group.
    """
    _check_attempt(job, attempt)
    _check(job, JobState.QUEUED)
    job = replace(job, groups_brought_down=job.groups_brought_down + has_brought_down)
    if job.is_cancel_requested:
        return cancel(job, at=at)
    if job.attempt >= MAX_ATTEMPTS or job.groups_brought_down >= MAX_GROUPS_BROUGHT_DOWN:
        return fail(job, at=at, error=cause)
    return replace(_waiting(job), attempt=job.attempt + 1)


def hand_back(job: Job, *, attempt: int, at: float) -> Job:
    """Returns a job as it waits again whose group never began it; that was no attempt."""
    _check_attempt(job, attempt)
    return cancel(job, at=at) if job.is_cancel_requested else _waiting(job)


def _waiting(job: Job) -> Job:
    return replace(_to(job, JobState.QUEUED), group=None, started_at=None, blocks_done=0)


def _to(job: Job, state: JobState) -> Job:
    _check(job, state)
    return replace(job, state=state)


def _check(job: Job, state: JobState) -> None:
    if state in NEXT_STATES[job.state]:
        return
    allowed = ", ".join(sorted(NEXT_STATES[job.state]))
    raise IllegalTransitionError(
        f"job {job.id} is {job.state} and cannot become {state}",
        remedy=f"from {job.state} it can become {allowed}" if allowed else f"{job.state} is final",
        param="id",
    )


def _check_attempt(job: Job, attempt: int) -> None:
    if attempt != job.attempt:
        raise StaleAttemptError(
            f"job {job.id} is at attempt {job.attempt}, the report is of attempt {attempt}",
            remedy="stop that attempt and throw away what it made",
            param="attempt",
        )
