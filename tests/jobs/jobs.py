"""Jobs that tests make."""

from __future__ import annotations

from dataclasses import replace

from serve_app.jobs.job import NewJob, Priority

_JOB = NewJob(
    spec={"prompt": "a woman speaks", "size": "704x384"},
    inputs={"image": "file_1", "audio": "file_2"},
    layout="stages=4,vae=1",
    predicted_s=60.0,
    priority=Priority.STANDARD,
    promised_at=7_300.0,
)


def new_job(**changes: object) -> NewJob:
    return replace(_JOB, **changes)  # type: ignore[arg-type]
