"""The job store: what is in it stays, what may not be is refused, and one Dispatcher writes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from serve_app.errors import InvalidRequestError
from serve_app.jobs.database import MAX_DOCUMENT_BYTES, MAX_DOCUMENT_DEPTH, dispatcher
from serve_app.jobs.errors import (
    IdempotencyConflictError,
    IllegalTransitionError,
    JobNotFoundError,
    StaleAttemptError,
    StaleEpochError,
    StoreError,
)
from serve_app.jobs.events import MAX_BLOCK_EVENTS, MAX_EVENTS_READ, EventKind
from serve_app.jobs.idempotency import IdempotencyKey
from serve_app.jobs.job import Job, JobError, JobState
from serve_app.jobs.store import MAX_PAGE, BlockReport, JobReader, JobStore
from tests.jobs.jobs import new_job
from tests.jobs.world import Clock

LOST = JobError("group_lost", "rank 2 died")


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "jobs.sqlite"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[JobStore]:
    store = JobStore.take_over(path, wall_clock=clock)
    yield store
    store.close()


def reopened(store: JobStore, path: Path, clock: Clock) -> JobStore:
    store.close()
    return JobStore.take_over(path, wall_clock=clock)


def test_a_job_reads_back_as_it_was_stored_after_a_restart(store: JobStore, path: Path, clock: Clock) -> None:
    spec = {"prompt": "“你好” \ud83d'; DROP TABLE jobs; --", "seed": 2**63 - 1, "metadata": {"a": [1, 2.5, None, True]}}
    added = store.add(new_job(spec=spec, metadata={"user": "u"}, quote={"promise_in_s": 7200.0}, expires_at=7_300.0))
    clock.now = 110.0
    store.start(added.id, group="g0")
    store.report([BlockReport(added.id, 1, blocks_done=2, num_blocks=4)])
    ended = store.complete(added.id, attempt=1, location="s3://videos/v.mp4", result={"peak_memory_mb": 20_000})
    assert (ended.started_at, ended.finished_at, ended.progress) == (110.0, 110.0, 100)
    assert reopened(store, path, clock).get(added.id) == ended
    assert ended.spec == spec


def test_every_change_is_an_event_and_a_late_reader_goes_on_from_a_number(store: JobStore) -> None:
    job = store.add(new_job())
    store.start(job.id, group="g0")
    store.report([BlockReport(job.id, 1, blocks_done=1, num_blocks=2)])
    store.lose_group(job.id, attempt=1, cause=LOST, has_brought_down=False)
    store.start(job.id, group="g1")
    store.request_cancel(job.id)
    store.cancel(job.id, attempt=2)
    kinds = ["queued", "started", "block", "requeued", "started", "cancel_requested", "cancelled"]
    events = store.events(job.id)
    assert [(event.number, event.kind.value) for event in events] == list(enumerate(kinds, start=1))
    assert store.events(job.id, after=5) == events[5:]
    assert events[2].content | {"blocks_done": 1, "num_blocks": 2, "progress": 50, "group": "g0"} == events[2].content
    assert store.events(job.id, after=10**30) == []


def test_of_many_blocks_the_newest_are_kept_and_all_else(store: JobStore) -> None:
    job = store.add(new_job())
    store.start(job.id, group="g0")
    for block in range(1, 101):
        store.report([BlockReport(job.id, 1, blocks_done=block, num_blocks=100)])
    events = store.events(job.id)
    assert len(events) == 2 + MAX_BLOCK_EVENTS < MAX_EVENTS_READ
    assert [events[0].kind, events[1].kind] == [EventKind.QUEUED, EventKind.STARTED]
    assert [event.number for event in events[2:]] == list(range(102 - MAX_BLOCK_EVENTS + 1, 103))


def test_a_failed_job_tells_why(store: JobStore) -> None:
    job = store.add(new_job())
    store.start(job.id, group="g0")
    failed = store.fail(job.id, attempt=1, error=JobError("over_budget", "x\ud800" * 5_000))
    read = store.get(job.id)
    assert (failed.state, read.error and read.error.code) == (JobState.FAILED, "over_budget")
    assert read.error is not None
    assert len(read.error.message) == 4_000


def test_a_report_that_tells_nothing_new_is_no_event(store: JobStore) -> None:
    job = store.add(new_job())
    store.start(job.id, group="g0")
    for _ in range(3):
        store.report([BlockReport(job.id, 1, blocks_done=1, num_blocks=2)])
    assert len(store.events(job.id)) == 3


def test_reports_of_other_attempts_and_ended_jobs_are_left_out(store: JobStore) -> None:
    first, second = store.add(new_job()), store.add(new_job())
    store.start(first.id, group="g0")
    reports = [BlockReport(job_id, attempt, 1, 2) for job_id, attempt in [(first.id, 1), (first.id, 2), (second.id, 1)]]
    assert [job.id for job in store.report([*reports, BlockReport("video_unknown", 1, 1, 2)])] == [first.id]


def test_said_twice_by_the_same_attempt_a_completion_is_no_error(store: JobStore) -> None:
    job = store.add(new_job())
    store.start(job.id, group="g0")
    ended = store.complete(job.id, attempt=1, location="a.mp4", result={})
    assert store.complete(job.id, attempt=1, location="a.mp4", result={}) == ended
    with pytest.raises(IllegalTransitionError, match="is completed and cannot become completed"):
        store.complete(job.id, attempt=1, location="b.mp4", result={})
    assert [event.kind.value for event in store.events(job.id)] == ["queued", "started", "completed"]


WRITES: list[Callable[[JobStore, Job], object]] = [
    lambda store, _: store.add(new_job()),
    lambda store, job: store.start(job.id, group="g0"),
    lambda store, job: store.report([BlockReport(job.id, 1, 1, 2)]),
    lambda store, job: store.complete(job.id, attempt=1, location="v.mp4", result={}),
    lambda store, job: store.fail(job.id, error=LOST),
    lambda store, job: store.request_cancel(job.id),
    lambda store, job: store.cancel(job.id, attempt=1),
    lambda store, job: store.lose_group(job.id, attempt=1, cause=LOST, has_brought_down=True),
    lambda store, job: store.delete(job.id),
]


@pytest.mark.parametrize("write", WRITES)
def test_the_writes_of_an_older_epoch_are_refused_and_change_nothing(
    store: JobStore, path: Path, clock: Clock, write: Callable[[JobStore, Job], object]
) -> None:
    job = store.add(new_job())
    newer = JobStore.take_over(path, wall_clock=clock)
    with pytest.raises(StaleEpochError, match="of epoch 1, the store of epoch 2"):
        write(store, job)
    assert (newer.page().jobs, newer.epoch) == ((job,), 2)
    newer.start(job.id, group="g1")
    newer.close()


def test_the_same_request_with_the_same_key_gets_its_job_another_request_a_conflict(store: JobStore) -> None:
    key = IdempotencyKey.of("k1", {"prompt": "a", "size": "704x384"})
    assert store.find_same(key) is None
    job = store.add(new_job(), key=key)
    again = IdempotencyKey.of("k1", {"size": "704x384", "prompt": "a"})
    assert store.find_same(again) == store.add(new_job(), key=again) == job
    other = IdempotencyKey.of("k1", {"prompt": "b", "size": "704x384"})
    with pytest.raises(IdempotencyConflictError, match="'k1' was used before, for another request"):
        store.find_same(other)
    with pytest.raises(IdempotencyConflictError):
        store.add(new_job(), key=other)
    assert len(store.page().jobs) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "\ud800", "a\x00"])
def test_a_key_that_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequestError, match="is not of 1 to 255 printable characters"):
        IdempotencyKey.of(key, {})


def test_pages_follow_the_order_of_admission(store: JobStore) -> None:
    ids = [store.add(new_job()).id for _ in range(5)]
    store.start(ids[0], group="g0")
    first = store.page(limit=2)
    assert ([job.id for job in first.jobs], first.has_more) == ([ids[4], ids[3]], True)
    last = store.page(limit=3, after=ids[3])
    assert ([job.id for job in last.jobs], last.has_more) == ([ids[2], ids[1], ids[0]], False)
    rising = store.page(order="asc", after=ids[1], state=JobState.QUEUED)
    assert [job.id for job in rising.jobs] == ids[2:]
    assert store.counts() == dict.fromkeys(JobState, 0) | {JobState.QUEUED: 4, JobState.RUNNING: 1}
    assert [job.id for job in store.unfinished()] == ids


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1, 10**30])
def test_a_page_has_its_limits(store: JobStore, limit: int) -> None:
    with pytest.raises(InvalidRequestError, match="is not between 1 and 100"):
        store.page(limit=limit)


@pytest.mark.parametrize("job_id", ["", "video_unknown", "' OR 1=1 --", "\ud800", "x" * 10_000, "a\x00b"])
def test_an_id_that_nobody_gave_is_not_found(store: JobStore, job_id: str) -> None:
    store.add(new_job())
    for read in (store.get, store.events, store.request_cancel, store.delete, lambda of: store.page(after=of)):
        with pytest.raises(JobNotFoundError) as refused:
            read(job_id)
        assert len(str(refused.value)) < 250


def nested(levels: int) -> dict[str, object]:
    return {"a": nested(levels - 1)} if levels else {}


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"prompt": "x" * MAX_DOCUMENT_BYTES}, "at most 262144 are stored"),
        (nested(MAX_DOCUMENT_DEPTH + 1), "nested more than 50 levels"),
        ({"seed": float("nan")}, "is not JSON"),
        ({"seed": 10**5_000}, "is not JSON"),
        ({"seed": object()}, "is not JSON"),
    ],
)
def test_a_document_that_could_not_be_read_back_is_refused(store: JobStore, spec: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidRequestError, match=why):
        store.add(new_job(spec=spec))
    assert store.page().jobs == ()


def test_the_mark_of_another_process_changes_with_the_store(store: JobStore, path: Path) -> None:
    reader = JobReader.open(path)
    marks = [reader.mark()]
    for _ in range(20):
        store.add(new_job())
        marks.append(reader.mark())
        assert reader.mark() == marks[-1]
    reader.close()
    assert len(set(marks)) == 21


def test_only_an_ended_job_can_be_deleted_and_nothing_of_it_stays(store: JobStore, path: Path) -> None:
    job = store.add(new_job(), key=IdempotencyKey.of("k", {}))
    with pytest.raises(IllegalTransitionError, match="is queued and cannot be deleted"):
        store.delete(job.id)
    store.request_cancel(job.id)
    assert store.delete(job.id).state is JobState.CANCELLED
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM events)").fetchone() == (0,)


def test_a_running_job_fails_by_its_attempt_alone(store: JobStore) -> None:
    job = store.add(new_job())
    store.start(job.id, group="g0")
    with pytest.raises(IllegalTransitionError, match="cannot be dropped before it starts"):
        store.fail(job.id, error=LOST)
    with pytest.raises(StaleAttemptError):
        store.fail(job.id, attempt=2, error=LOST)
    assert store.fail(job.id, attempt=1, error=LOST).error == LOST


def test_a_store_of_another_version_is_refused(store: JobStore, path: Path) -> None:
    with store._writing() as connection:
        connection.execute(update(dispatcher).values(schema_version=99))
    with pytest.raises(StoreError, match="is of schema 99, this version knows schema 1"):
        JobReader.open(path)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is not a database, whatever its name says; not at all" * 100)
    for path in (tmp_path / "text", tmp_path, tmp_path / "text" / "below"):
        with pytest.raises(StoreError, match="cannot be opened"):
            JobReader.open(path)


def test_a_database_that_fails_is_told_as_such(store: JobStore, path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE events")
    with pytest.raises(StoreError, match="no such table: events"):
        store.add(new_job())
    assert store.page().jobs == ()


def test_many_threads_read_and_write_at_once(store: JobStore, path: Path) -> None:
    reader, errors = JobReader.open(path), []

    def work() -> None:
        try:
            for _ in range(10):
                job = store.add(new_job())
                store.start(job.id, group="g0")
                assert reader.get(job.id).state is JobState.RUNNING
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    reader.close()
    assert errors == []
    assert store.counts()[JobState.RUNNING] == 40


def test_a_new_store_may_be_opened_by_several_at_once(path: Path) -> None:
    opened: list[JobReader] = []
    threads = [threading.Thread(target=lambda: opened.append(JobReader.open(path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(opened) == 6
    for reader in opened:
        assert reader.counts()[JobState.QUEUED] == 0
        reader.close()
