"""/v1/files: portraits and voices, uploaded once and used by id."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from serve_app.api.bodies import Body, read_body
from serve_app.api.context import Api, AsStream
from serve_app.api.inputs import inspect_any
from serve_app.api.ranges import file_answer
from serve_app.errors import InvalidRequestError, UploadNotFoundError, did_you_mean, shown
from serve_app.schemas.video import Deleted
from serve_app.storage.files import INLINE, Kind, StoredFile

MAX_FILES_LISTED = 1000
Purpose = Literal["user_data", "vision"]
PURPOSES = get_args(Purpose)
_FIELDS = ("file", "purpose")
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "a portrait or a voice"},
                        "purpose": {"type": "string", "enum": list(PURPOSES), "default": PURPOSES[0]},
                    },
                }
            }
        },
    }
}

router = APIRouter(tags=["files"])


class UploadedFile(BaseModel):
    """An upload. `facts` is what was read from it; `filename` is what the client called it."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = Field(default="processed", description="whatever is kept was decoded")
    kind: Kind
    sha256: str
    facts: dict[str, float]


class FileList(BaseModel):
    """A page of uploads."""

    object: Literal["list"] = "list"
    data: list[UploadedFile]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.post("/v1/files", summary="Upload a portrait or a voice", openapi_extra=_BODY)
async def create_file(request: Request, api: Api) -> UploadedFile:
    """Keeps a file; what it is is told by its content alone. 415 for anything that is neither image nor sound."""
    async with read_body(request, api) as body:
        purpose = _check(body)
        part = body.files["file"]
        add = partial(
            api.files.add,
            part.file,
            inspect=lambda path, _: inspect_any(path, api.config),
            purpose=purpose,
            filename=part.filename or "",
        )
        stored = await api.decode(add)
        await asyncio.to_thread(api.files.sync, (stored,))
        return _told(stored)


def _check(body: Body) -> str:
    """Returns the purpose; raises InvalidRequestError unless there is one file and nothing that is not understood."""
    for name in (*body.fields, *body.files):
        if name not in _FIELDS:
            raise InvalidRequestError(
                f"{shown(name)} is not a field of an upload{did_you_mean(name, _FIELDS)}",
                remedy="send file and purpose",
                param=name,
            )
    if "file" not in body.files:
        raise InvalidRequestError("there is no file", remedy="send it as the form's part file", param="file")
    purpose = body.fields.get("purpose", PURPOSES[0])
    if purpose not in PURPOSES:
        raise InvalidRequestError(
            f"purpose {shown(purpose)} has no meaning here", remedy=f"use {PURPOSES[0]}", param="purpose"
        )
    return str(purpose)


@router.get("/v1/files", summary="List uploads")
async def list_files(
    api: Api,
    after: Annotated[str | None, Query(description="id of the last file of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_FILES_LISTED)] = 100,
    order: Annotated[Literal["asc", "desc"], Query(description="by the time of upload")] = "desc",
    purpose: Annotated[Purpose | None, Query(description="only these")] = None,
) -> FileList:
    """Lists uploads page by page, the newest first; what came with a request for a video is not among them."""
    page = await asyncio.to_thread(partial(api.files.page, after=after, limit=limit, order=order, purpose=purpose))
    files = [_told(stored) for stored in page.files]
    return FileList(
        data=files,
        first_id=files[0].id if files else None,
        last_id=files[-1].id if files else None,
        has_more=page.has_more,
    )


@router.get("/v1/files/{file_id}", summary="Look at an upload")
async def get_file(file_id: str, api: Api) -> UploadedFile:
    """Answers what is known of an upload."""
    return _told(await asyncio.to_thread(_listed, api, file_id))


@router.delete("/v1/files/{file_id}", summary="Delete an upload")
async def delete_file(file_id: str, api: Api) -> Deleted:
    """Removes an upload; videos that were created with it are made all the same."""
    await asyncio.to_thread(_listed, api, file_id)
    await asyncio.to_thread(api.files.delete, file_id)
    return Deleted(id=file_id, object="file")


@router.get(
    "/v1/files/{file_id}/content",
    summary="The bytes of an upload",
    response_class=Response,
    dependencies=[AsStream],
    responses={200: {"content": {"application/octet-stream": {}}}, 206: {"description": "A range"}},
)
async def get_file_content(file_id: str, request: Request, api: Api) -> Response:
    """Answers the file as it was sent, with Range and ETag; never to be shown by a browser."""
    stored = await asyncio.to_thread(_listed, api, file_id)
    file = await asyncio.to_thread(api.files.open, file_id)
    headers = {"Content-Type": "application/octet-stream", "Content-Disposition": f'attachment; filename="{file_id}"'}
    return file_answer(request, file, etag=f'"{stored.sha256}"', headers=headers)


def _listed(api: Api, file_id: str) -> StoredFile:
    stored = api.files.get(file_id)
    if stored.purpose == INLINE:
        raise UploadNotFoundError.of(file_id)
    return stored


def _told(stored: StoredFile) -> UploadedFile:
    facts = dict(vars(stored.facts))
    if stored.kind == "audio":
        facts["seconds"] = facts["num_samples"] / facts["sample_rate"]
    return UploadedFile(
        id=stored.id,
        bytes=stored.num_bytes,
        created_at=int(stored.created_at),
        filename=stored.filename,
        purpose=stored.purpose,
        kind=stored.kind,
        sha256=stored.sha256,
        facts=facts,
    )
