"""A Dispatcher without groups, as a process of its own: python -m tests.jobs.dispatcher_process STORE

It takes the store over, gives up the attempts of whoever came before, and then takes, runs and ends jobs without a
pause. Each line that it writes tells of something that the store has accepted already. It ends when it is overtaken.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from serve_app.jobs.errors import StaleEpochError
from serve_app.jobs.job import Job, JobError, JobState
from serve_app.jobs.store import BlockReport, JobStore
from tests.jobs.jobs import new_job

RESTARTED = JobError("dispatcher_restarted", "its group was not heard of after a restart")
OVERTAKEN = 7


def main(path: Path) -> int:
    store = JobStore.take_over(path, wall_clock=time.time)
    say("epoch", str(store.epoch))
    try:
        for job in store.unfinished():
            if job.state is JobState.RUNNING:
                job = store.lose_group(job.id, attempt=job.attempt, cause=RESTARTED, has_brought_down=False)
            if job.state is JobState.QUEUED:
                run(store, job)
        while True:
            first, second = store.add(new_job()), store.add(new_job())
            say("accepted", first.id)
            say("accepted", second.id)
            run(store, first)
    except StaleEpochError:
        return OVERTAKEN


def run(store: JobStore, job: Job) -> None:
    store.start(job.id, group="g0")
    for block in (1, 2):
        store.report([BlockReport(job.id, job.attempt, blocks_done=block, num_blocks=2)])
    store.complete(job.id, attempt=job.attempt, location=f"{job.id}.{job.attempt}.mp4", result={})
    say("completed", job.id)


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
