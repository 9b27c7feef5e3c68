"""Jobs as rows of the store, and rows as jobs."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import RowMapping

from serve_app.jobs.database import to_text
from serve_app.jobs.job import Job, JobError, JobState, Priority

_DOCUMENTS = ("spec", "inputs", "metadata", "quote", "result")
_PLAIN = (
    "id",
    "layout",
    "predicted_s",
    "promised_at",
    "expires_at",
    "created_at",
    "attempt",
    "groups_brought_down",
    "group",
    "started_at",
    "finished_at",
    "blocks_done",
    "num_blocks",
    "progress",
    "location",
)
MAX_MESSAGE_CHARACTERS = 4_000


def to_row(job: Job) -> dict[str, Any]:
    """Returns the columns of a job; raises InvalidRequestError for a document that is too large."""
    return {
        **{name: getattr(job, name) for name in _PLAIN},
        **{name: to_text(getattr(job, name), name=name) for name in _DOCUMENTS},
        "state": job.state.value,
        "priority": job.priority.value,
        "is_cancel_requested": int(job.is_cancel_requested),
        "error_code": job.error.code if job.error else None,
        "error_message": _storable(job.error.message) if job.error else None,
    }


def changes(before: Job, after: Job) -> dict[str, Any]:
    """Returns the columns in which two states of a job differ."""
    old = to_row(before)
    return {name: value for name, value in to_row(after).items() if old[name] != value}


def to_job(row: RowMapping) -> Job:
    """Returns the job of a row."""
    error = None if row["error_code"] is None else JobError(row["error_code"], row["error_message"])
    return Job(
        **{name: row[name] for name in _PLAIN},
        **{name: json.loads(row[name]) for name in _DOCUMENTS},
        state=JobState(row["state"]),
        priority=Priority(row["priority"]),
        is_cancel_requested=bool(row["is_cancel_requested"]),
        error=error,
    )


def _storable(message: str) -> str:
    """Returns a message without what is no Unicode (file names can be anything), and not endless."""
    return message[:MAX_MESSAGE_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
