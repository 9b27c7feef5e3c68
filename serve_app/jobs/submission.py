"""Submission: a video as a client asked for it and the API read it, on its way to the Dispatcher."""

from __future__ import annotations

from dataclasses import dataclass, field

from serve_app.jobs.idempotency import IdempotencyKey
from serve_app.jobs.job import Document, Priority
from serve_app.planning.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Everything that admission and the render need; inputs are in the file store already.

    `spec` is a RenderSpec as JSON whose image and audio are file ids. `inputs` holds what was read from them and told
    to the client again (`api.videos` writes it); `input_bytes` is their size. Two submissions with the same `key` are
    one job.
    """

    model: str
    spec: Document
    work: Workload
    priority: Priority
    deadline_s: float | None = None
    inputs: Document = field(default_factory=dict)
    input_bytes: int = 0
    metadata: Document = field(default_factory=dict)
    key: IdempotencyKey | None = None
