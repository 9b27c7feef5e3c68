"""A VideoService over a real job store, without a Dispatcher: the test decides what is admitted and who renders."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from typing import Literal

from serve_app.errors import UnavailableError
from serve_app.jobs.events import Event
from serve_app.jobs.idempotency import IdempotencyKey
from serve_app.jobs.job import Document, Job, JobState, NewJob
from serve_app.jobs.quote import Admitted, Outcome, Place, Quote, Rejected
from serve_app.jobs.store import JobStore, Page
from serve_app.jobs.submission import Submission

_LOOK_EVERY_S = 0.005
QUOTE = Quote(layout="tiny", seconds=2.0, promise_in_s=7200.0, start_in_s=1.5, finish_in_s=3.5, position=2)


@dataclass
class FakeService:
    """Answers `outcomes` one after the other, then yes."""

    store: JobStore
    outcomes: list[Outcome] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)
    is_ready: bool = True
    breaks: bool = False
    waiting: int = 0

    async def plan(self, submission: Submission) -> Outcome:
        if self.breaks:
            raise RuntimeError("/secret/path is gone")
        self._check()
        self.submissions.append(submission)
        return self.outcomes.pop(0) if self.outcomes else Admitted(QUOTE)

    async def submit(self, submission: Submission) -> Job | Rejected:
        outcome = await self.plan(submission)
        if isinstance(outcome, Rejected):
            return outcome
        new = NewJob(
            spec=submission.spec,
            inputs=submission.inputs,
            layout="tiny",
            predicted_s=2.0,
            priority=submission.priority,
            metadata=submission.metadata,
            quote={**asdict(outcome.quote), "disk_bytes": 1},
        )
        return self.store.add(new, key=submission.key)

    async def find_same(self, key: IdempotencyKey) -> Job | None:
        return self.store.find_same(key)

    async def cancel(self, job_id: str) -> Job:
        return self.store.request_cancel(job_id)

    async def delete(self, job_id: str) -> Job:
        return self.store.delete(job_id)

    async def job(self, job_id: str) -> Job:
        return self.store.get(job_id)

    async def jobs(
        self, *, after: str | None, limit: int, order: Literal["asc", "desc"], state: JobState | None
    ) -> Page:
        return self.store.page(after=after, limit=limit, order=order, state=state)

    async def events(self, job_id: str, *, after: int) -> list[Event]:
        return self.store.events(job_id, after=after)

    async def wait_for_event(self, job_id: str, *, after: int, timeout_s: float) -> bool:
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                while self.store.last_events([job_id]).get(job_id, after + 1) <= after:
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            return False
        finally:
            self.waiting -= 1
        return True

    async def place(self, job_id: str) -> Place | None:
        return Place(position=2, start_in_s=1.5, finish_in_s=3.5) if job_id else None

    async def capacity(self) -> Document:
        return {"is_admitting": True, "waiting": 0, "pools": []}

    async def check_ready(self) -> None:
        self._check()

    def _check(self) -> None:
        if not self.is_ready:
            raise UnavailableError("the Dispatcher does not answer", remedy="try again in some seconds")
