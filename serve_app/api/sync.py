"""POST /v1/videos/sync: waits for the video and answers it; who goes away wants it no more."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi import APIRouter, Request, Response

from serve_app.api.content import whole_video
from serve_app.api.context import Api, AsStream, Context
from serve_app.api.errors import ApiError
from serve_app.api.videos import BODY, IdempotencyHeader, created, ended
from serve_app.errors import AvatarError
from serve_app.jobs.job import Job

_CLIENT_GONE = 499
"""What logs know such answers by; nobody reads it."""

router = APIRouter(tags=["videos"])


class _ClientGoneError(Exception):
    """Nobody waits any more."""


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
        job = await _waited(request, await asyncio.shield(creating), api)
    except (asyncio.CancelledError, _ClientGoneError) as gone:
        if idempotency_key is None:
            api.begin(_withdraw(creating, api))
        if isinstance(gone, asyncio.CancelledError):
            raise
        return Response(status_code=_CLIENT_GONE)
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


async def _waited(request: Request, job: Job, api: Context) -> Job:
    """Returns the job when it has ended or the time is over; raises _ClientGoneError when nobody waits any more."""
    waiting = asyncio.create_task(ended(job.id, api, timeout_s=api.config.api.max_sync_s))
    leaving = asyncio.create_task(_client_gone(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise _ClientGoneError
    finally:
        waiting.cancel()
        leaving.cancel()


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _withdraw(creating: asyncio.Task[Job], api: Context) -> None:
    """Cancels a video as soon as it is there; it may have ended, or never come to be."""
    with suppress(AvatarError):
        await api.service.cancel((await creating).id)
