"""GET /v1/videos/{id}/content: the file when it is whole, before that its bytes as they are made."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from serve_app.api.context import Api, AsStream, Context
from serve_app.api.errors import ApiError
from serve_app.api.flow import FlowingResponse
from serve_app.api.live import LiveReader
from serve_app.api.presence import ClientGoneError, nobody, while_present
from serve_app.api.ranges import file_answer
from serve_app.jobs.errors import JobNotFoundError
from serve_app.jobs.job import Job, JobState

FIRST_BYTES_S = 60.0
"""How long a reader of a video that waits in the queue waits with it."""
_MP4 = "video/mp4"

router = APIRouter(tags=["videos"])


@router.head("/v1/videos/{video_id}/content", include_in_schema=False, dependencies=[AsStream])
@router.get(
    "/v1/videos/{video_id}/content",
    summary="The video as MP4, whole or while it is made",
    response_class=Response,
    dependencies=[AsStream],
    responses={
        200: {"content": {_MP4: {}}, "description": "The whole video; while it is made, what comes of it"},
        206: {"content": {_MP4: {}}, "description": "A range of a whole video"},
        304: {"description": "The client has it (If-None-Match)"},
    },
)
async def get_content(
    video_id: str,
    request: Request,
    api: Api,
    variant: Annotated[str, Query(description='only "video" in this version')] = "video",
) -> Response:
    """Completed: with Range, ETag and Content-Length. While it is made: a fragmented MP4 with sound, in chunks.

    A reader may come at any time and gets everything from the start. One who comes before the first bytes are made
    waits for them, up to a minute, then is told 409 not_ready. A video that can come to no end cuts the connection.
    """
    if variant != "video":
        raise ApiError(
            f"variant {variant[:80]!r} is not there", code="invalid_request", remedy="leave it out", param="variant"
        )
    job = await api.service.job(video_id)
    if job.state.is_final:
        return await whole_video(request, job, api)
    if request.method == "HEAD":
        return _unknown_length(job)
    reader = LiveReader(job, api)
    try:
        job = await while_present(request, reader.wait_for_start(timeout_s=FIRST_BYTES_S))
    except ClientGoneError:
        return nobody()
    if job.state.is_final:
        return await whole_video(request, job, api)
    return FlowingResponse(reader.chunks(), media_type=_MP4, headers={**_headers(job), "Cache-Control": "no-store"})


async def whole_video(request: Request, job: Job, api: Context, *, headers: dict[str, str] | None = None) -> Response:
    """Answers with the file of a job that has ended; raises ApiError when it has none."""
    if job.state is not JobState.COMPLETED:
        raise ApiError(
            f"video {job.id} has {job.state} and has no content"
            + (f": {api.shown(job.error.message)}" if job.error else ""),
            code="no_content",
            remedy="GET the video for its error; create it again",
            param="id",
            details={} if job.error is None else {"code": job.error.code},
        )
    file = await asyncio.to_thread(api.videos.open, job.id, attempt=job.attempt)
    if file is None:
        raise JobNotFoundError.of(job.id)
    etag = f'"{job.id}-{job.attempt}"'
    return file_answer(request, file, etag=etag, headers={**_headers(job), "Content-Type": _MP4, **(headers or {})})


def _unknown_length(job: Job) -> Response:
    """Answers HEAD for a video that is not whole: Response says that its length is that of its own body, 0."""
    answer = Response(media_type=_MP4, headers=_headers(job))
    del answer.headers["Content-Length"]
    return answer


def _headers(job: Job) -> dict[str, str]:
    return {"Content-Disposition": f'inline; filename="{job.id}.mp4"', "Cache-Control": "private, no-cache"}
