"""Acceptance: what is stored of a request that was admitted."""

from __future__ import annotations

from dataclasses import asdict

from serve_app.jobs.fleet import Fleet
from serve_app.jobs.job import NewJob
from serve_app.jobs.quote import Quote
from serve_app.jobs.submission import Submission


def new_job(wanted: Submission, quote: Quote, *, fleet: Fleet, wall_now: float) -> NewJob:
    """Returns the job as the store takes it.

    Beside the quote it keeps what a later Dispatcher needs: the prediction by arithmetic alone, and the room on disk.
    """
    predicted_s = fleet.predicted_s(wanted.work, quote.layout)
    return NewJob(
        spec=wanted.spec,
        inputs={**wanted.inputs, "model": wanted.model},
        layout=quote.layout,
        predicted_s=quote.seconds,
        priority=wanted.priority,
        promised_at=None if quote.promise_in_s is None else wall_now + quote.promise_in_s,
        expires_at=None if wanted.deadline_s is None else wall_now + wanted.deadline_s,
        metadata=wanted.metadata,
        quote={**asdict(quote), "predicted_s": predicted_s, "disk_bytes": fleet.disk_bytes(wanted)},
    )
