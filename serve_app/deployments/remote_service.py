"""RemoteService: the API's VideoService on Ray: reads from the job store, everything else from the Dispatcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.event_watch import EventWatch
from serve_app.errors import AvatarError, UnavailableError
from serve_app.jobs.events import Event
from serve_app.jobs.idempotency import IdempotencyKey
from serve_app.jobs.job import Document, Job, JobState
from serve_app.jobs.quote import Outcome, Place, Rejected
from serve_app.jobs.store import JobReader, Page
from serve_app.jobs.submission import Submission

_TRY_AGAIN_S = 0.5

Value = TypeVar("Value")


class RemoteService:
    """See VideoService. A Dispatcher that restarts is waited for, up to `call_s`: what is asked of it can be asked
    twice, but for a submission without a key. A bug of the Dispatcher is not asked for again."""

    def __init__(self, dispatcher: DeploymentHandle[Any], store: Path, *, call_s: float) -> None:
        self._dispatcher = dispatcher
        self._store = store
        self._call_s = call_s
        self._reader: JobReader | None = None
        self._watch = EventWatch(lambda job_ids: self._opened().last_events(job_ids), self._mark)

    async def plan(self, submission: Submission) -> Outcome:
        """See VideoService."""
        answer: Outcome = await self._ask("plan", submission)
        return answer

    async def submit(self, submission: Submission) -> Job | Rejected:
        """See VideoService."""
        answer: Job | Rejected = await self._ask("submit", submission, is_repeatable=submission.key is not None)
        return answer

    async def find_same(self, key: IdempotencyKey) -> Job | None:
        """See VideoService."""
        return await self._read(lambda reader: reader.find_same(key))

    async def cancel(self, job_id: str) -> Job:
        """See VideoService."""
        answer: Job = await self._ask("cancel", job_id)
        return answer

    async def delete(self, job_id: str) -> Job:
        """See VideoService."""
        answer: Job = await self._ask("delete", job_id)
        return answer

    async def job(self, job_id: str) -> Job:
        """See VideoService."""
        return await self._read(lambda reader: reader.get(job_id))

    async def jobs(
        self, *, after: str | None, limit: int, order: Literal["asc", "desc"], state: JobState | None
    ) -> Page:
        """See VideoService."""
        return await self._read(partial(JobReader.page, after=after, limit=limit, order=order, state=state))

    async def events(self, job_id: str, *, after: int) -> list[Event]:
        """See VideoService."""
        return await self._read(partial(JobReader.events, job_id=job_id, after=after))

    async def wait_for_event(self, job_id: str, *, after: int, timeout_s: float) -> bool:
        """See VideoService."""
        return await self._watch.wait(job_id, after=after, timeout_s=timeout_s)

    async def place(self, job_id: str) -> Place | None:
        """See VideoService."""
        answer: Place | None = await self._ask("place", job_id)
        return answer

    async def capacity(self) -> Document:
        """See VideoService."""
        answer: Document = await self._ask("capacity")
        return answer

    async def check_ready(self) -> None:
        """See VideoService."""
        capacity = await self._ask("capacity", patience_s=_TRY_AGAIN_S)
        if not capacity["is_admitting"]:
            raise UnavailableError("the Dispatcher does not take requests yet", remedy="try again in some seconds")

    async def _read(self, question: Callable[[JobReader], Value]) -> Value:
        return await asyncio.to_thread(lambda: question(self._opened()))

    def _mark(self) -> object:
        return None if self._reader is None else self._reader.mark()

    def _opened(self) -> JobReader:
        """Opens the store when it is first read: the Dispatcher makes it."""
        if self._reader is None:
            self._reader = JobReader.open(self._store)
        return self._reader

    async def _ask(
        self, method: str, *arguments: object, is_repeatable: bool = True, patience_s: float | None = None
    ) -> Any:  # noqa: ANN401  (the answer of that method of the Dispatcher)
        deadline = time.monotonic() + (patience_s or self._call_s)
        while True:
            left_s = deadline - time.monotonic()
            try:
                return await self._asked_once(method, arguments, left_s)
            except UnavailableError:
                if not is_repeatable or time.monotonic() + _TRY_AGAIN_S > deadline:
                    raise
            await asyncio.sleep(_TRY_AGAIN_S)

    async def _asked_once(self, method: str, arguments: tuple[object, ...], timeout_s: float) -> object:
        """Raises UnavailableError when nobody answers, and what the Dispatcher answers that is an error."""
        try:
            answer: object = await asyncio.wait_for(getattr(self._dispatcher, method).remote(*arguments), timeout_s)
        except RayTaskError:  # the Dispatcher is there, and raised it
            raise
        except Exception as error:  # Ray says in many ways that a replica died or is not there
            raise UnavailableError(
                f"the Dispatcher does not answer ({type(error).__name__})", remedy="try again in some seconds"
            ) from error
        if isinstance(answer, AvatarError):
            raise answer
        return answer
