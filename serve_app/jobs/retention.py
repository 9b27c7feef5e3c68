"""Retention: what is kept for `keep_s` after its end, and then is gone: jobs, their videos, uploads nobody uses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from serve_app.jobs.errors import JobNotFoundError
from serve_app.jobs.store import JobStore

log = logging.getLogger(__name__)

_AT_ONCE = 500
INPUTS = ("image", "audio")
"""Fields of a spec that name uploaded files."""


class Videos(Protocol):
    """What is asked of the storage of videos."""

    def delete(self, job_id: str) -> None: ...

    def job_ids(self) -> Collection[str]: ...


class Uploads(Protocol):
    """What is asked of the storage of uploads."""

    def expire(self, *, older_than_s: float, keep: Collection[str]) -> Collection[str]:
        """Removes files that were uploaded so long ago, but for those in `keep`; returns their ids."""
        ...


@dataclass(frozen=True)
class Retention:
    """Sweeps, beside a Dispatcher that works; whatever was left half removed, the next sweep removes."""

    store: JobStore
    videos: Videos
    uploads: Uploads
    keep_s: float
    wall_clock: Callable[[], float]

    def sweep(self) -> int:
        """Removes what has been kept long enough, and videos of jobs that are not there; returns how many."""
        ended = self.store.ended_before(self.wall_clock() - self.keep_s, limit=_AT_ONCE)
        for job in ended:
            with suppress(JobNotFoundError):  # somebody deletes it at the same time
                self.store.delete(job.id)
            self.videos.delete(job.id)
        orphans = [job_id for job_id in self.videos.job_ids() if self.store.find(job_id) is None]
        for job_id in orphans:
            self.videos.delete(job_id)
        needed = {job.spec[name] for job in self.store.unfinished() for name in INPUTS if name in job.spec}
        files = self.uploads.expire(older_than_s=self.keep_s, keep=needed)
        count = len(ended) + len(orphans) + len(files)
        if count:
            log.info("swept", extra={"jobs": len(ended), "orphans": len(orphans), "files": len(files)})
        return count
