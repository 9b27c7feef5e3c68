"""The durable job store: whoever may read reads, one Dispatcher writes.

Every change of a job is one transaction, with the event that tells it. Each Dispatcher that starts takes a new epoch;
the transactions of an older one are refused. So a process may be killed at any moment, or live on unknown to the next.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self

from sqlalchemy import Connection, Engine, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from serve_app.errors import InvalidRequestError, shown
from serve_app.jobs import events, job
from serve_app.jobs.database import dispatcher, jobs, open_database
from serve_app.jobs.errors import (
    IdempotencyConflictError,
    IllegalTransitionError,
    JobNotFoundError,
    StaleEpochError,
    StoreError,
)
from serve_app.jobs.events import Event, EventKind
from serve_app.jobs.idempotency import IdempotencyKey
from serve_app.jobs.job import Document, Job, JobError, JobState, NewJob, new_job_id
from serve_app.jobs.records import changes, to_job, to_row

MAX_PAGE = 100
MAX_ID_CHARACTERS = 64


@dataclass(frozen=True)
class Page:
    """Some of the jobs, in order; `has_more` says whether others follow."""

    jobs: tuple[Job, ...]
    has_more: bool


@dataclass(frozen=True)
class BlockReport:
    """How far an attempt is."""

    job_id: str
    attempt: int
    blocks_done: int
    num_blocks: int


class JobReader:
    """What the API reads; any number of processes may."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._marking: sqlite3.Connection | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises StoreError when the file is no job store of this version."""
        return cls(open_database(path))

    def close(self) -> None:
        if self._marking is not None:
            self._marking.close()
        self._engine.dispose()

    def get(self, job_id: str) -> Job:
        """Raises JobNotFoundError."""
        with _transaction(self._engine) as connection:
            return to_job(_row(connection, job_id))

    def find(self, job_id: str) -> Job | None:
        """Returns a job, or None when it is not there."""
        with _transaction(self._engine) as connection:
            row = _find_row(connection, job_id)
            return None if row is None else to_job(row)

    def find_same(self, key: IdempotencyKey) -> Job | None:
        """Returns the job that this request made before; raises IdempotencyConflictError if another request did."""
        with _transaction(self._engine) as connection:
            return _find_same(connection, key)

    def page(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        state: JobState | None = None,
    ) -> Page:
        """Returns jobs in the order of admission, from behind job `after` on; raises JobNotFoundError for that."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequestError(
                f"limit {shown(limit)} is not between 1 and {MAX_PAGE}", remedy="ask for pages", param="limit"
            )
        wanted = select(jobs).order_by(jobs.c.number.desc() if order == "desc" else jobs.c.number).limit(limit + 1)
        if state is not None:
            wanted = wanted.where(jobs.c.state == state.value)
        with _transaction(self._engine) as connection:
            if after is not None:
                number = _row(connection, after)["number"]
                wanted = wanted.where(jobs.c.number < number if order == "desc" else jobs.c.number > number)
            found = [to_job(row) for row in connection.execute(wanted).mappings()]
        return Page(tuple(found[:limit]), has_more=len(found) > limit)

    def unfinished(self) -> list[Job]:
        """Returns all jobs that wait or run, in the order of admission: what a new Dispatcher builds on."""
        states = (JobState.QUEUED.value, JobState.RUNNING.value)
        with _transaction(self._engine) as connection:
            rows = connection.execute(select(jobs).where(jobs.c.state.in_(states)).order_by(jobs.c.number))
            return [to_job(row) for row in rows.mappings()]

    def ended_before(self, moment: float, *, limit: int) -> list[Job]:
        """Returns jobs that ended before a moment in wall-clock seconds, the oldest first."""
        wanted = select(jobs).where(jobs.c.finished_at < moment).order_by(jobs.c.finished_at).limit(limit)
        with _transaction(self._engine) as connection:
            return [to_job(row) for row in connection.execute(wanted).mappings()]

    def counts(self) -> dict[JobState, int]:
        """Returns how many jobs are in each state."""
        with _transaction(self._engine) as connection:
            rows = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state)).all()
        counted = {JobState(state): count for state, count in rows}
        return {state: counted.get(state, 0) for state in JobState}

    def last_events(self, job_ids: Collection[str]) -> dict[str, int]:
        """Returns the number of the newest event of each of these jobs; jobs that are not there are left out."""
        wanted = select(jobs.c.id, jobs.c.last_event).where(jobs.c.id.in_(list(job_ids)))
        with _transaction(self._engine) as connection:
            return {row.id: row.last_event for row in connection.execute(wanted)}

    def mark(self) -> int | None:
        """Returns what differs once the store has changed, within microseconds; None when it cannot be told just now.

        Call it from one thread.
        """
        try:
            if self._marking is None:
                self._marking = sqlite3.connect(str(self._engine.url.database), timeout=0, check_same_thread=False)
            (version,) = self._marking.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            return None
        return int(version)

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """Returns a job's events with numbers above `after`; again, while it is full, for those that follow."""
        with _transaction(self._engine) as connection:
            return events.read_after(connection, _row(connection, job_id)["number"], after=after)


class JobStore(JobReader):
    """What the Dispatcher writes. Every method is one transaction and raises StaleEpochError in an old Dispatcher.

    `wall_clock` gives the times that are stored, in seconds since 1970.
    """

    def __init__(self, engine: Engine, *, epoch: int, wall_clock: Callable[[], float]) -> None:
        super().__init__(engine)
        self.epoch = epoch
        self._now = wall_clock
        self._writer = engine.execution_options(is_write=True)

    @classmethod
    def take_over(cls, path: Path, *, wall_clock: Callable[[], float]) -> JobStore:
        """Opens the store for writing, in a new epoch: whoever wrote before writes no more."""
        engine = open_database(path)
        with _transaction(engine.execution_options(is_write=True)) as connection:
            connection.execute(update(dispatcher).values(epoch=dispatcher.c.epoch + 1))
            epoch = connection.execute(select(dispatcher.c.epoch)).scalar_one()
        return cls(engine, epoch=epoch, wall_clock=wall_clock)

    def add(self, new: NewJob, *, job_id: str | None = None, key: IdempotencyKey | None = None) -> Job:
        """Stores an admitted job and returns it, or the one that the same request made before (it has another id).

        Raises IdempotencyConflictError, and InvalidRequestError for a document that cannot be stored.
        """
        at = self._now()
        added = Job(**vars(new), id=job_id or new_job_id(), state=JobState.QUEUED, created_at=at)
        row = to_row(added) | {"last_event": 1}
        if key is not None:
            row |= {"idempotency_key": key.key, "request_digest": key.digest}
        with self._writing() as connection:
            same = None if key is None else _find_same(connection, key)
            if same is not None:
                return same
            number = connection.execute(insert(jobs).values(row).returning(jobs.c.number)).scalar_one()
            events.append(connection, number, Event(1, EventKind.QUEUED, at, _told(added)))
        return added

    def start(self, job_id: str, *, group: str) -> Job:
        return self._change(job_id, lambda before, at: job.start(before, group=group, at=at))

    def report(self, reports: Iterable[BlockReport]) -> list[Job]:
        """Stores how far several jobs are, in one transaction; leaves out attempts that were given up or have ended."""
        with self._writing() as connection:
            return [after for report in reports if (after := self._report(connection, report)) is not None]

    def complete(self, job_id: str, *, attempt: int, location: str, result: Document) -> Job:
        """Stores that the video is committed at `location`; the same said twice by the same attempt is no error."""

        def change(before: Job, at: float) -> Job:
            if (before.state, before.attempt, before.location) == (JobState.COMPLETED, attempt, location):
                return before
            return job.complete(before, attempt=attempt, at=at, location=location, result=result)

        return self._change(job_id, change)

    def fail(self, job_id: str, *, error: JobError, attempt: int | None = None) -> Job:
        """Stores that a job failed for good: its running `attempt`, or without one a job that waits."""

        def change(before: Job, at: float) -> Job:
            if attempt is None:
                return job.drop(before, at=at, error=error)
            return job.fail_attempt(before, attempt=attempt, at=at, error=error)

        return self._change(job_id, change)

    def request_cancel(self, job_id: str) -> Job:
        """Cancels a job that waits; notes for a running one that it shall be."""
        return self._change(job_id, lambda before, at: job.request_cancel(before, at=at))

    def cancel(self, job_id: str, *, attempt: int) -> Job:
        """Stores that an attempt was stopped on request."""
        return self._change(job_id, lambda before, at: job.cancel_attempt(before, attempt=attempt, at=at))

    def lose_group(self, job_id: str, *, attempt: int, cause: JobError, has_brought_down: bool) -> Job:
        """Stores that a job's group is gone; the answer is queued again, or failed, or cancelled."""
        change = partial(_after_loss, attempt=attempt, cause=cause, has_brought_down=has_brought_down)
        return self._change(job_id, change)

    def hand_back(self, job_id: str, *, attempt: int) -> Job:
        """Stores that a job's group leaves without having begun it; the answer is queued again, or cancelled."""
        return self._change(job_id, lambda before, at: job.hand_back(before, attempt=attempt, at=at))

    def delete(self, job_id: str) -> Job:
        """Removes an ended job with its events, and returns what it was; raises IllegalTransitionError for another."""
        with self._writing() as connection:
            row = _row(connection, job_id)
            ended = to_job(row)
            if not ended.state.is_final:
                raise IllegalTransitionError(
                    f"job {job_id} is {ended.state} and cannot be deleted", remedy="cancel it first", param="id"
                )
            connection.execute(delete(jobs).where(jobs.c.number == row["number"]))
        return ended

    def _report(self, connection: Connection, report: BlockReport) -> Job | None:
        row = _find_row(connection, report.job_id)
        if row is None or (row["state"], row["attempt"]) != (JobState.RUNNING.value, report.attempt):
            return None
        after = job.report(
            to_job(row), attempt=report.attempt, blocks_done=report.blocks_done, num_blocks=report.num_blocks
        )
        return _store(connection, row, after, at=self._now())

    def _change(self, job_id: str, change: Callable[[Job, float], Job]) -> Job:
        at = self._now()
        with self._writing() as connection:
            row = _row(connection, job_id)
            return _store(connection, row, change(to_job(row), at), at=at)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Opens a transaction that no other Dispatcher can come into, and ends it here if one has taken over."""
        with _transaction(self._writer) as connection:
            epoch = connection.execute(select(dispatcher.c.epoch).with_for_update()).scalar_one()
            if epoch != self.epoch:
                raise StaleEpochError(
                    f"this Dispatcher is of epoch {self.epoch}, the store of epoch {epoch}", remedy="end this process"
                )
            yield connection


@contextmanager
def _transaction(engine: Engine) -> Iterator[Connection]:
    """Opens a transaction that is whole or has never been; raises StoreError when the database fails."""
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise StoreError(
            f"the job store failed: {error.args[0] if error.args else error}",
            remedy="look at the space and the health of its disk",
        ) from error


def _store(connection: Connection, row: RowMapping, after: Job, *, at: float) -> Job:
    before = to_job(row)
    values = changes(before, after)
    kind = events.kind_of_change(before, after)
    if kind is not None:
        number = row["last_event"] + 1
        values["last_event"] = number
        events.append(connection, row["number"], Event(number, kind, at, _told(after)))
    if values:
        connection.execute(update(jobs).where(jobs.c.number == row["number"]).values(values))
    return after


def _told(of: Job) -> dict[str, object]:
    """Returns what an event says of the job as it then is."""
    told: dict[str, object] = {"state": of.state.value, "attempt": of.attempt, "progress": of.progress}
    match of.state:
        case JobState.RUNNING:
            told |= {"group": of.group, "blocks_done": of.blocks_done, "num_blocks": of.num_blocks}
        case JobState.COMPLETED:
            told |= {"location": of.location}
        case JobState.FAILED if of.error is not None:
            told |= {"code": of.error.code, "message": of.error.message}
    return told


def _after_loss(before: Job, at: float, *, attempt: int, cause: JobError, has_brought_down: bool) -> Job:
    return job.lose_group(before, attempt=attempt, at=at, cause=cause, has_brought_down=has_brought_down)


def _find_same(connection: Connection, key: IdempotencyKey) -> Job | None:
    row = connection.execute(select(jobs).where(jobs.c.idempotency_key == key.key)).mappings().one_or_none()
    if row is None:
        return None
    if row["request_digest"] != key.digest:
        raise IdempotencyConflictError(
            f"Idempotency-Key {shown(key.key)} was used before, for another request",
            remedy="use a new key for a new request, and the same body with the same key",
            param="Idempotency-Key",
        )
    return to_job(row)


def _row(connection: Connection, job_id: str) -> RowMapping:
    row = _find_row(connection, job_id)
    if row is None:
        raise JobNotFoundError.of(job_id)
    return row


def _find_row(connection: Connection, job_id: str) -> RowMapping | None:
    """Returns the row of a job, if there is one; an id comes from a URL and may be anything."""
    if len(job_id) > MAX_ID_CHARACTERS or not job_id.isascii():
        return None
    return connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()
