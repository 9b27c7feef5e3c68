"""After a restart: the ledger as the store tells it, before the leaders report what still runs."""

from __future__ import annotations

from collections.abc import Iterable

from serve_app.jobs.job import Job, JobState
from serve_app.jobs.ledger import Ledger


def restore(ledger: Ledger, jobs: Iterable[Job], *, wall_now: float) -> None:
    """Lets unfinished jobs wait in the ledger, with the promises that they have.

    Start none before the leaders had time to report: each report of a running job is `ledger.adopt`. What then is
    running in the store and was not reported has lost its group: `ledger.cancel`, `store.lose_group`, and `restore`
    once more if it is queued. A job that ran is not dropped meanwhile, whatever its deadline.
    """
    for job in jobs:
        expires_at = job.expires_at if job.state is JobState.QUEUED else None
        ledger.restore(
            job.id,
            layout=job.layout,
            seconds=job.predicted_s,
            promise_in_s=None if job.promised_at is None else job.promised_at - wall_now,
            expires_in_s=None if expires_at is None else expires_at - wall_now,
        )
