"""What is swept, and what is not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.jobs.job import JobError
from serve_app.jobs.retention import Retention
from serve_app.jobs.store import JobStore
from serve_app.storage.videos import VideoFiles
from tests.jobs.jobs import new_job
from tests.jobs.world import Clock

KEEP_S = 1000.0


@dataclass
class OneUpload:
    kept: set[str] = field(default_factory=set)

    def expire(self, *, older_than_s: float, keep: Collection[str]) -> list[str]:
        assert older_than_s == KEEP_S
        self.kept = set(keep)
        return []


def test_old_jobs_and_orphans_go_and_the_inputs_of_waiting_jobs_stay(tmp_path: Path) -> None:
    clock, videos, uploads = Clock(), VideoFiles(tmp_path), OneUpload()
    store = JobStore.take_over(tmp_path / "jobs.sqlite3", wall_clock=clock)
    old, young = store.add(new_job()), store.add(new_job())
    waits = store.add(new_job(spec={"image": "file_1", "audio": "file_2"}))
    for job_id in (old.id, young.id, "video_orphan"):
        with videos.sink(job_id, attempt=1) as sink:
            sink.append(b"fragment")
            sink.commit()
    store.fail(old.id, error=JobError("a", "b"))
    clock.now += KEEP_S - 1
    store.fail(young.id, error=JobError("a", "b"))
    clock.now += 2
    assert Retention(store, videos, uploads, keep_s=KEEP_S, wall_clock=clock).sweep() == 2
    assert (store.find(old.id), videos.job_ids()) == (None, {young.id})
    assert {store.get(young.id).id, store.get(waits.id).id} == {young.id, waits.id}
    assert uploads.kept == {"file_1", "file_2"}


def test_a_sweep_goes_on_beside_files_that_are_none_of_its_own_and_jobs_that_somebody_deletes(tmp_path: Path) -> None:
    clock, videos = Clock(), VideoFiles(tmp_path)
    store = JobStore.take_over(tmp_path / "jobs.sqlite3", wall_clock=clock)
    ended = [store.add(new_job()) for _ in range(2)]
    for job in ended:
        store.fail(job.id, error=JobError("a", "b"))
    clock.now += KEEP_S + 1
    (tmp_path / "videos" / "lost+found").mkdir(parents=True)
    retention = Retention(store, videos, OneUpload(), keep_s=KEEP_S, wall_clock=clock)
    found = store.ended_before(clock.now, limit=10)
    store.delete(ended[0].id)
    store.ended_before = lambda *_, **__: found  # type: ignore[method-assign]
    assert retention.sweep() == 2
    assert store.find(ended[1].id) is None
    assert (tmp_path / "videos" / "lost+found").is_dir()
