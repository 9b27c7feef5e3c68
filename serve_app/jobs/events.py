"""What happened to a job, in order and numbered, so that who comes late or was cut off reads on from a number.

What changes a job's state is kept as long as the job; of its blocks the newest are, which say where it is.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from serve_app.jobs.database import events, to_text
from serve_app.jobs.job import Document, Job, JobState

MAX_BLOCK_EVENTS = 64
"""Block events that are kept of a job: about a minute, at one report a second."""
MAX_EVENTS_READ = 500
_LARGEST_NUMBER = 2**62
"""What a client sends as Last-Event-ID may be larger than a database counts."""


class EventKind(enum.StrEnum):
    """What happened. REQUEUED: its group was lost."""

    QUEUED = "queued"
    STARTED = "started"
    BLOCK = "block"
    REQUEUED = "requeued"
    CANCEL_REQUESTED = "cancel_requested"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Event:
    """One of a job's events; `at` is in wall-clock seconds."""

    number: int
    kind: EventKind
    at: float
    content: Document


def kind_of_change(before: Job, after: Job) -> EventKind | None:
    """Returns what a change of a job is to those who watch it; None when there is nothing to tell."""
    if after.state is before.state:
        if after.is_cancel_requested and not before.is_cancel_requested:
            return EventKind.CANCEL_REQUESTED
        return EventKind.BLOCK if after.blocks_done != before.blocks_done else None
    match after.state:
        case JobState.QUEUED:
            return EventKind.REQUEUED
        case JobState.RUNNING:
            return EventKind.STARTED
        case ended:
            return EventKind(ended.value)


def append(connection: Connection, job_number: int, event: Event) -> None:
    """Writes an event, in the transaction of the change that it tells."""
    connection.execute(
        insert(events).values(
            job_number=job_number,
            number=event.number,
            kind=event.kind,
            at=event.at,
            content=to_text(event.content, name="event"),
        )
    )
    if event.kind is EventKind.BLOCK:
        _forget_old_blocks(connection, job_number)


def read_after(connection: Connection, job_number: int, *, after: int, limit: int = MAX_EVENTS_READ) -> list[Event]:
    """Returns a job's events with numbers above `after`, in order, MAX_EVENTS_READ at most."""
    rows = connection.execute(
        select(events.c.number, events.c.kind, events.c.at, events.c.content)
        .where(events.c.job_number == job_number, events.c.number > min(after, _LARGEST_NUMBER))
        .order_by(events.c.number)
        .limit(min(limit, MAX_EVENTS_READ))
    )
    return [Event(row.number, EventKind(row.kind), row.at, json.loads(row.content)) for row in rows]


def _forget_old_blocks(connection: Connection, job_number: int) -> None:
    of_blocks = events.c.job_number == job_number, events.c.kind == EventKind.BLOCK
    newest = select(events.c.number).where(*of_blocks).order_by(events.c.number.desc()).limit(MAX_BLOCK_EVENTS)
    connection.execute(delete(events).where(*of_blocks, events.c.number.not_in(newest)))
