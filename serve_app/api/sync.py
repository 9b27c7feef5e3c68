"""POST /v1/videos/sync: waits for the video and answers it; who goes away wants it no more."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi import APIRouter, Request, Response

from serve_app.api.content import whole_video
from serve_app.api.context import Api, AsStream, Context
from serve_app.api.errors import ApiError
from serve_app.api.presence import ClientGoneError, nobody, while_present
from serve_app.api.videos import BODY, IdempotencyHeader, created, ended
from serve_app.errors import AvatarError
from serve_app.jobs.job import Job

router = APIRouter(tags=["videos"])


@router.post(
    "/v1/videos/sync",
    summary="Create a video and wait for it",
    openapi_extra=BODY,
    response_class=Response,
    dependencies=[AsStream],
    responses={200: {"content": {"video/mp4": {}}, "description": "The video, with what it took as X- headers"}},
)
async def create_and_wait(request: Request, api: Api, idempotency_key: IdempotencyHeader = None) -> Response:
    """Answers with the file itself. When the client goes away the video is cancelled, unless it had a key to come back.

    After `max_sync_s` of the configuration 504 sync_timeout: the video goes on, and `details` has its id.
    """
    creating = api.begin(created(request, api, idempotency_key))
    try:
        job = await asyncio.shield(creating)
        job = await while_present(request, ended(job.id, api, timeout_s=api.config.api.max_sync_s))
    except (asyncio.CancelledError, ClientGoneError) as gone:
        if idempotency_key is None:
            api.begin(_withdraw(creating, api))
        if isinstance(gone, asyncio.CancelledError):
            raise
        return nobody()
    if not job.state.is_final:
        raise ApiError(
            f"video {job.id} is not ready after {api.config.api.max_sync_s:g} s; it goes on",
            code="sync_timeout",
            remedy="GET /v1/videos/{id}/content waits for it",
            details={"id": job.id},
        )
    measured = {
        "X-Inference-Time-S": job.result.get("inference_time_s"),
        "X-Peak-Memory-MB": job.result.get("peak_memory_mb"),
    }
    told = {name: f"{value:.3f}" for name, value in measured.items() if value is not None}
    return await whole_video(request, job, api, headers={"X-Video-Id": job.id, **told})


async def _withdraw(creating: asyncio.Task[Job], api: Context) -> None:
    """Cancels a video as soon as it is there; it may have ended, or never come to be."""
    with suppress(AvatarError):
        await api.service.cancel((await creating).id)
