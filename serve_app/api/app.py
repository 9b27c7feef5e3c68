"""The HTTP API as an ASGI application."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from serve_app.api import catalog, content, events, health, sync, uploads, videos
from serve_app.api.context import MAX_LARGEST_BODIES, Context, Room, Streams
from serve_app.api.errors import ErrorAnswer, add_error_handlers
from serve_app.api.guard import Guard
from serve_app.api.service import VideoService
from serve_app.schemas.service import ServiceConfig
from serve_app.schemas.video import VideoCreate
from serve_app.storage.files import FileStore
from serve_app.storage.videos import VideoFiles

VERSION = "1"
_ABOUT = "A portrait, a voice and a sentence become a talking video. Wire-compatible with the OpenAI videos API."
_ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorAnswer, "description": "It never fits, or not by its deadline; details has the numbers"},
    "4XX": {"model": ErrorAnswer, "description": "The request is wrong, or comes at the wrong time"},
    "5XX": {"model": ErrorAnswer, "description": "No capacity (503, with Retry-After), or a fault of the service"},
}
_ROUTERS = (sync.router, videos.router, content.router, events.router, uploads.router, catalog.router, health.router)


def build_api(
    service: VideoService, *, files: FileStore, videos: VideoFiles, config: ServiceConfig, names_answers: bool = True
) -> FastAPI:
    """Returns the application; it holds nothing that another replica would need to know.

    `names_answers`: see Guard.
    """
    app = FastAPI(
        title="Live Avatar Serve",
        version=VERSION,
        description=_ABOUT,
        responses=_ERRORS,
        redirect_slashes=False,  # a redirect names the scheme that we see, which a proxy may have changed
        generate_unique_id_function=lambda route: route.name,
    )
    streams, room = Streams(config.api.max_streams), Room(MAX_LARGEST_BODIES * config.api.max_body_bytes)
    app.state.context = Context(service, files, videos, config, streams, room)
    for router in _ROUTERS:
        app.include_router(router)
    add_error_handlers(app)
    app.add_middleware(Guard, allowed_hosts=config.allowed_hosts, names_answers=names_answers)
    # FastAPI's own way to extend its schema.
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Returns the schema, with the two forms in which a video may be asked for."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, request = models_json_schema([(VideoCreate, "validation")], ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] |= request["$defs"]
        schema["components"]["requestBodies"] = {"VideoCreate": _request_body(request["$defs"]["VideoCreate"])}
        app.openapi_schema = schema
    return app.openapi_schema


def _request_body(as_json: dict[str, Any]) -> dict[str, Any]:
    parts = {
        "input_reference": {"type": "string", "format": "binary", "description": "the portrait"},
        "audio": {"type": "string", "format": "binary", "description": "the voice"},
    }
    as_form = {**as_json, "title": "VideoForm", "properties": {**as_json["properties"], **parts}}
    return {
        "required": True,
        "description": "A form, with nested fields as `metadata[a]`, or JSON; both mean the same",
        "content": {
            "multipart/form-data": {"schema": as_form},
            "application/json": {"schema": {"$ref": "#/components/schemas/VideoCreate"}},
        },
    }
