"""VideoService: what the API asks of the application behind it; `deployments.remote_service` is it on Ray."""

from __future__ import annotations

from typing import Literal, Protocol

from serve_app.jobs.events import Event
from serve_app.jobs.idempotency import IdempotencyKey
from serve_app.jobs.job import Document, Job, JobState
from serve_app.jobs.quote import Outcome, Place, Rejected
from serve_app.jobs.store import Page
from serve_app.jobs.submission import Submission


class VideoService(Protocol):
    """Reads come from the job store, so they work while the Dispatcher restarts; the rest asks the Dispatcher.

    Every method raises JobNotFoundError where a job is named that is not there, and UnavailableError when the
    Dispatcher does not answer in time.
    """

    async def plan(self, submission: Submission) -> Outcome:
        """Answers what `submit` would, and takes nothing."""
        ...

    async def submit(self, submission: Submission) -> Job | Rejected:
        """Takes the job, durably; with a key that was used before returns that job.

        Raises IdempotencyConflictError when the key was used for another request.
        """
        ...

    async def find_same(self, key: IdempotencyKey) -> Job | None:
        """Returns the job that this very request made before; raises IdempotencyConflictError."""
        ...

    async def cancel(self, job_id: str) -> Job:
        """Cancels a waiting job; asks a running one to stop. Raises IllegalTransitionError for one that has ended."""
        ...

    async def delete(self, job_id: str) -> Job:
        """Removes an ended job and its video and returns what it was; raises IllegalTransitionError for another."""
        ...

    async def job(self, job_id: str) -> Job:
        """Returns a job as it is now."""
        ...

    async def jobs(
        self, *, after: str | None, limit: int, order: Literal["asc", "desc"], state: JobState | None
    ) -> Page:
        """Returns jobs in the order of admission, from behind job `after` on."""
        ...

    async def events(self, job_id: str, *, after: int) -> list[Event]:
        """Returns a job's events with numbers above `after`, which may be none; see JobReader.events."""
        ...

    async def wait_for_event(self, job_id: str, *, after: int, timeout_s: float) -> bool:
        """Waits until the job has an event with a number above `after`; says whether there is one."""
        ...

    async def place(self, job_id: str) -> Place | None:
        """Returns where a waiting job stands in the queue; None for one that does not wait."""
        ...

    async def capacity(self) -> Document:
        """Returns pools, groups and queue, as GET /v1/capacity tells them."""
        ...

    async def check_ready(self) -> None:
        """Raises UnavailableError unless requests are taken now."""
        ...
