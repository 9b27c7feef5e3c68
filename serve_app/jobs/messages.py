"""What a group's leader and the Dispatcher tell each other: a report, at least every second, and its answer.

Every message may be lost or come twice: a report tells all that the leader knows, an answer all that it shall do.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from serve_app.jobs.job import Document, JobError


class GroupCondition(enum.StrEnum):
    """What a group can do now. DRAINING: it finishes its job and takes no other. GONE: this is its last report."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True)
class Run:
    """An attempt that a group works on. `block_seconds` is what its newest block took."""

    job_id: str
    attempt: int
    blocks_done: int
    num_blocks: int
    block_seconds: float = 0.0


class Ending(enum.StrEnum):
    """How an attempt ended. LOST: its ranks failed, so another group may try it."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass(frozen=True)
class End:
    """An attempt that has ended: with a video at `location`, or with an error.

    `is_to_blame`: the ranks failed while they worked on it, so the video itself may be the reason.
    """

    job_id: str
    attempt: int
    ending: Ending
    location: str = ""
    result: Document = field(default_factory=dict)
    error: JobError | None = None
    is_to_blame: bool = False


@dataclass(frozen=True)
class GroupReport:
    """All that a leader knows of its group; `facts` may hold `task.CARD_BYTES`, of its smallest card."""

    group: str
    pool: str
    condition: GroupCondition
    run: Run | None = None
    end: End | None = None
    num_restarts: int = 0
    reason: str = ""
    facts: Document = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """Render this attempt of a job."""

    job_id: str
    attempt: int
    spec: Document


@dataclass(frozen=True)
class Answer:
    """What the leader shall do: begin `order`, or stop the attempt that it runs.

    `is_end_taken`: the reported end is in the job store; None when none was reported. False: that attempt had been
    given up, and what it made is to be thrown away. `num_waiting`: jobs that wait for groups of this pool.
    """

    order: Order | None = None
    stops: bool = False
    is_end_taken: bool | None = None
    num_waiting: int = 0
