"""A job as the video object."""

from __future__ import annotations

from serve_app.api.context import Context
from serve_app.jobs.job import Job, JobState
from serve_app.jobs.quote import Admitted
from serve_app.planning.geometry import FPS
from serve_app.schemas.video import Plan, Quoted, Status, Video, VideoError, Warned

STATUS: dict[JobState, Status] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
STATE: dict[Status, JobState] = {status: state for state, status in STATUS.items()}
_QUOTE_FIELDS = Quoted.model_fields


def video_of(job: Job, api: Context) -> Video:
    """Returns the video object."""
    inputs, finished_at = job.inputs, job.finished_at
    return Video(
        id=job.id,
        model=inputs.get("model", ""),
        status=STATUS[job.state],
        progress=job.progress,
        prompt=job.spec.get("prompt", ""),
        size=inputs.get("size", ""),
        seconds=f"{inputs.get('seconds', 0):g}",
        fps=FPS,
        num_frames=inputs.get("num_frames", 0),
        created_at=int(job.created_at),
        started_at=None if job.started_at is None else int(job.started_at),
        completed_at=None if finished_at is None else int(finished_at),
        expires_at=None if finished_at is None else int(finished_at + api.config.times.keep_s),
        error=None if job.error is None else VideoError(code=job.error.code, message=api.shown(job.error.message)),
        quote=_quoted(job),
        inference_time_s=job.result.get("inference_time_s"),
        queue_time_s=None if job.started_at is None else round(max(0.0, job.started_at - job.created_at), 3),
        peak_memory_mb=job.result.get("peak_memory_mb"),
        attempt=job.attempt,
        cancel_requested=job.is_cancel_requested,
        priority=job.priority.value,
        user=inputs.get("user"),
        metadata=dict(job.metadata),
        image=inputs.get("image"),
        audio=inputs.get("audio"),
        warnings=tuple(Warned(**warning) for warning in inputs.get("warnings", ())),
    )


def plan_of(admitted: Admitted, *, model: str, size: str, num_frames: int, warnings: tuple[Warned, ...]) -> Plan:
    """Returns a quote as POST /v1/videos/plan answers it."""
    quote = {name: getattr(admitted.quote, name) for name in _QUOTE_FIELDS}
    return Plan(
        **quote,
        model=model,
        size=size,
        fps=FPS,
        num_frames=num_frames,
        video_seconds=num_frames / FPS,
        warnings=warnings,
    )


def _quoted(job: Job) -> Quoted | None:
    if not job.quote.keys() >= _QUOTE_FIELDS.keys():
        return None
    return Quoted(**{name: job.quote[name] for name in _QUOTE_FIELDS})
