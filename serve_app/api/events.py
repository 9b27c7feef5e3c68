"""GET /v1/videos/{id}/events: what happens to a video, as Server-Sent Events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse

from serve_app.api.answers import STATUS
from serve_app.api.context import Api, AsStream, Context
from serve_app.api.live import BrokenStreamError
from serve_app.errors import AvatarError, UnavailableError
from serve_app.jobs.errors import JobNotFoundError
from serve_app.jobs.events import Event, EventKind
from serve_app.jobs.job import Job, JobState
from serve_app.planning.geometry import FPS, FRAMES_PER_BLOCK

HEARTBEAT_S = 15.0
_ENDS = {EventKind.COMPLETED, EventKind.FAILED, EventKind.CANCELLED}
_RETRY_MS = 2000
_MAX_NUMBER = 2**62

router = APIRouter(tags=["videos"])


@router.get(
    "/v1/videos/{video_id}/events",
    summary="What happens to a video, as Server-Sent Events",
    response_class=Response,
    dependencies=[AsStream],
    responses={
        200: {
            "content": {"text/event-stream": {}},
            "description": "queued, started, block, requeued, cancel_requested, then completed, failed or cancelled",
        },
        204: {"description": "It has ended, and Last-Event-ID was its last event"},
    },
)
async def get_events(
    video_id: str,
    api: Api,
    last_event_id: Annotated[int, Header(description="resume behind this event", ge=0, le=_MAX_NUMBER)] = 0,
) -> Response:
    """Ids are event numbers, from 1 on; of blocks only the newest are kept. Ends with the video.

    queued tells position and start_in_s; block tells blocks_done, num_blocks, fps and eta_s. Comments are a heartbeat.
    """
    job = await api.service.job(video_id)
    if job.state.is_final and not await api.service.events(video_id, after=last_event_id):
        return Response(status_code=204)
    return StreamingResponse(
        _stream(video_id, last_event_id, api),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _stream(video_id: str, after: int, api: Context) -> AsyncIterator[str]:
    yield f"retry: {_RETRY_MS}\n\n"
    while True:
        try:
            job = await api.service.job(video_id)
            events = await api.service.events(video_id, after=after)
            for event in events:
                content = await _content(event, job, api)
                yield f"id: {event.number}\nevent: {event.kind.value}\ndata: {json.dumps(content)}\n\n"
                after = event.number
                if event.kind in _ENDS:
                    return
            if not events and job.state.is_final:
                return
            if not events and not await api.service.wait_for_event(video_id, after=after, timeout_s=HEARTBEAT_S):
                yield ": heartbeat\n\n"
        except JobNotFoundError:  # deleted meanwhile
            return
        except AvatarError as error:  # the store is away: the client comes again, behind what it has seen
            raise BrokenStreamError(f"events of {video_id} behind {after}: {error}") from error


async def _content(event: Event, job: Job, api: Context) -> Mapping[str, Any]:
    """Returns what is told of an event: what the store has of it, without what is ours, and what follows from it."""
    told = event.content
    state = JobState(told["state"])
    content = {"id": job.id, "status": STATUS[state], "progress": told["progress"], "attempt": told["attempt"]}
    content["at"] = round(event.at, 3)
    match event.kind:
        case EventKind.QUEUED | EventKind.REQUEUED:
            content |= await _place(job, api)
        case EventKind.STARTED | EventKind.BLOCK | EventKind.CANCEL_REQUESTED:
            content |= {name: told[name] for name in ("blocks_done", "num_blocks") if name in told}
            content |= _pace(event, job)
        case EventKind.FAILED:
            content |= {"error": {"code": told.get("code"), "message": api.shown(told.get("message", ""))}}
    return content


async def _place(job: Job, api: Context) -> Mapping[str, Any]:
    """Returns where the job stands now, if it waits."""
    if job.state is not JobState.QUEUED:
        return {}
    try:
        place = await api.service.place(job.id)
    except UnavailableError:
        return {}
    if place is None:
        return {}
    return {"position": place.position, "start_in_s": place.start_in_s, "finish_in_s": place.finish_in_s}


def _pace(event: Event, job: Job) -> Mapping[str, Any]:
    """Returns frames per second since the attempt began, and what is left at that pace."""
    done, num_blocks = event.content.get("blocks_done", 0), event.content.get("num_blocks", 0)
    if not done or job.started_at is None or event.content["attempt"] != job.attempt:
        return {}
    elapsed_s = max(event.at - job.started_at, 1e-3)
    num_frames = min(done * FRAMES_PER_BLOCK, job.inputs.get("num_frames", done * FRAMES_PER_BLOCK))
    return {
        "fps": round(num_frames / elapsed_s, 3),
        "eta_s": round((num_blocks - done) * elapsed_s / done, 3),
        "speed": round(num_frames / elapsed_s / FPS, 3),
    }
