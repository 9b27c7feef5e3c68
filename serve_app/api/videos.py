"""/v1/videos: created, planned, listed, looked at, cancelled and deleted."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request

from serve_app.api import requests
from serve_app.api.answers import STATE, plan_of, video_of
from serve_app.api.bodies import read_body
from serve_app.api.context import Api, Context
from serve_app.api.errors import ApiError
from serve_app.jobs.errors import IllegalTransitionError
from serve_app.jobs.job import Job
from serve_app.jobs.store import MAX_PAGE
from serve_app.schemas.video import Deleted, Plan, Status, Video, VideoList, Warned

CANCEL_S = 30.0
"""How long DELETE waits for a running video to stop."""
BODY: dict[str, Any] = {"requestBody": {"$ref": "#/components/requestBodies/VideoCreate"}}
IdempotencyHeader = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="the same key with the same body makes one video, whatever is lost"),
]

router = APIRouter(tags=["videos"])


@router.post("/v1/videos", summary="Create a video", openapi_extra=BODY)
async def create_video(request: Request, api: Api, idempotency_key: IdempotencyHeader = None) -> Video:
    """Takes a portrait, a voice and a prompt, as a form or as JSON, and answers at once: accepted, with a promise.

    What is accepted survives restarts. What is not is refused with the reason and the numbers: 422 when it never fits
    or its deadline is too short, 503 with Retry-After when there is no capacity for it now.
    """
    return video_of(await created(request, api, idempotency_key), api)


@router.post("/v1/videos/plan", summary="What would be promised", openapi_extra=BODY)
async def plan_video(request: Request, api: Api) -> Plan:
    """Takes the same body as POST /v1/videos and answers, or refuses, as that would; nothing is made of it."""
    async with read_body(request, api) as body:
        wanted = requests.read_request(body, config=api.config)
        admitted, offer = await api.to_end(requests.plan(wanted, api))
    warnings = tuple(Warned(code=warning.code, message=warning.message) for warning in offer.warnings)
    return plan_of(
        admitted,
        model=wanted.model,
        size=str(offer.video.size),
        num_frames=offer.video.timeline.num_frames,
        warnings=warnings,
    )


@router.get("/v1/videos", summary="List videos")
async def list_videos(
    api: Api,
    after: Annotated[str | None, Query(description="id of the last video of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="by the time of creation")] = "desc",
    status: Annotated[Status | None, Query(description="only these")] = None,
) -> VideoList:
    """Lists videos page by page, the newest first."""
    state = None if status is None else STATE[status]
    page = await api.service.jobs(after=after, limit=limit, order=order, state=state)
    videos = tuple(video_of(job, api) for job in page.jobs)
    return VideoList(
        data=videos,
        first_id=videos[0].id if videos else None,
        last_id=videos[-1].id if videos else None,
        has_more=page.has_more,
    )


@router.get("/v1/videos/{video_id}", summary="Look at a video")
async def get_video(video_id: str, api: Api) -> Video:
    """Answers the video as it is now; a failed one too is told with status 200."""
    return video_of(await api.service.job(video_id), api)


@router.post("/v1/videos/{video_id}/cancel", summary="Cancel a video")
async def cancel_video(video_id: str, api: Api) -> Video:
    """Cancels a waiting video at once; a running one stops at its next block border. 409 for one that has ended."""
    return video_of(await api.service.cancel(video_id), api)


@router.delete("/v1/videos/{video_id}", summary="Delete a video")
async def delete_video(video_id: str, api: Api) -> Deleted:
    """Removes a video with its file and what came with its request; one that goes on is cancelled first.

    Waits up to 30 s until it has stopped; 409 cancel_pending afterwards, and the same request again completes it.
    """
    job = await api.service.job(video_id)
    if not job.state.is_final:
        await _stopped(video_id, api)
    await api.to_end(_removed(video_id, api))
    return Deleted(id=video_id, object="video.deleted")


async def _removed(video_id: str, api: Context) -> None:
    """Removes an ended video, and then what came with its request: half of it would leave files that nobody needs."""
    job = await api.service.delete(video_id)
    inputs = [job.spec[name] for name in ("image", "audio") if name in job.spec]
    await asyncio.to_thread(requests.forget, api, inputs)


async def created(request: Request, api: Context, idempotency_key: str | None) -> Job:
    """Returns the job of a request, perhaps one that the same request made before; raises ApiError when refused."""
    async with read_body(request, api) as body:
        wanted = requests.read_request(body, config=api.config)
        key = await requests.key_of(wanted, idempotency_key, api)
        if key is not None and (same := await api.service.find_same(key)) is not None:
            return same
        return await api.to_end(requests.submit(wanted, api, key=key))


async def _stopped(video_id: str, api: Context) -> None:
    """Cancels a video and waits until it has ended; raises ApiError when that takes too long."""
    try:
        job = await api.service.cancel(video_id)
    except IllegalTransitionError:  # it has ended in between
        return
    if not (job.state.is_final or (await ended(video_id, api, timeout_s=CANCEL_S)).state.is_final):
        raise ApiError(
            f"video {video_id} is being cancelled, and has not stopped yet",
            code="cancel_pending",
            remedy="send the same request again in some seconds",
            param="id",
            retry_after_s=1.0,
        )


async def ended(video_id: str, api: Context, *, timeout_s: float) -> Job:
    """Waits until a video has ended or the time is over, and returns it as it then is."""
    loop = asyncio.get_running_loop()
    deadline, seen = loop.time() + timeout_s, 0
    while True:
        job = await api.service.job(video_id)
        left_s = deadline - loop.time()
        if job.state.is_final or left_s <= 0:
            return job
        events = await api.service.events(video_id, after=seen)
        if events:
            seen = events[-1].number
        else:
            await api.service.wait_for_event(video_id, after=seen, timeout_s=left_s)
