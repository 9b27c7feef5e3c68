"""Every error as the client sees it: one envelope, a status by code, and when to come again."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from serve_app.errors import AvatarError, shown
from serve_app.jobs.quote import Reason, Rejected

MAX_PARAM_CHARACTERS = 100
_MAX_JITTER = 0.1

STATUS: Mapping[str, int] = MappingProxyType(
    {
        "invalid_request": 400,
        "forbidden": 403,
        "file_not_found": 404,
        "job_not_found": 404,
        "model_not_found": 404,
        "not_found": 404,
        "method_not_allowed": 405,
        "body_too_slow": 408,
        "idempotency_conflict": 409,
        "illegal_transition": 409,
        "cancel_pending": 409,
        "no_content": 409,
        "not_ready": 409,
        "body_too_large": 413,
        "unsupported_media": 415,
        "range_not_satisfiable": 416,
        Reason.NEVER_FITS.value: 422,
        Reason.DEADLINE_TOO_SHORT.value: 422,
        Reason.NO_CAPACITY.value: 503,
        Reason.NO_GROUP.value: 503,
        Reason.QUEUE_FULL.value: 503,
        Reason.HOST_FULL.value: 503,
        Reason.DRAINING.value: 503,
        "unavailable": 503,
        "job_store": 503,
        "output_not_writable": 503,
        "sync_timeout": 504,
    }
)
"""By code; any other is our own fault: 500."""
_COME_AGAIN_S = {"unavailable": 1.0, "job_store": 1.0}
_CLIENTS_TYPE, _SERVERS_TYPE = "invalid_request_error", "server_error"

_REMEDIES = {
    Reason.NEVER_FITS: "ask for one of details.nearest, or set accept_alternatives",
    Reason.DEADLINE_TOO_SHORT: "give a later deadline_s, or leave it out",
    Reason.NO_CAPACITY: "send it again after Retry-After, or with a later deadline_s",
    Reason.NO_GROUP: "GET /v1/capacity tells which groups there are; send it again when one is there",
    Reason.QUEUE_FULL: "send it again later",
    Reason.HOST_FULL: "send it again when other videos have ended or were deleted",
    Reason.DRAINING: "send it again in some seconds",
}


class ErrorBody(BaseModel):
    """What went wrong; `message` ends with what to do about it."""

    code: str = Field(description="stable; what programs should look at")
    message: str
    type: str = Field(description="invalid_request_error or server_error")
    param: str | None = Field(description="the field that is wrong")
    details: dict[str, Any] = Field(description="the numbers behind it")


class ErrorAnswer(BaseModel):
    """The body of every answer of 400 and above."""

    error: ErrorBody


class ApiError(AvatarError):
    """An error that only the API has; `code` decides its status."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        remedy: str,
        param: str | None = None,
        details: Mapping[str, object] | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy, param=param)
        self.code = code
        self.details = details or {}
        self.retry_after_s = retry_after_s
        self.headers = headers or {}


def refusal(rejected: Rejected) -> ApiError:
    """Returns the error for a request that admission refused."""
    return ApiError(
        rejected.message,
        code=rejected.reason.value,
        remedy=_REMEDIES[rejected.reason],
        details=rejected.figures,
        retry_after_s=rejected.retry_after_s,
    )


def answer(error: AvatarError, *, headers: Mapping[str, str] | None = None) -> Response:
    """Returns an error as the client gets it; of our own faults only that there was one."""
    status = STATUS.get(error.code, 500)
    message = str(error) if error.code in STATUS else "the service failed; the request id in X-Request-Id finds why"
    known = error if isinstance(error, ApiError) else None
    retry_after_s = known.retry_after_s if known else _COME_AGAIN_S.get(error.code)
    body = {
        "code": error.code,
        "message": message,
        "type": _CLIENTS_TYPE if status < 500 else _SERVERS_TYPE,
        "param": error.param and error.param[:MAX_PARAM_CHARACTERS],
        "details": known.details if known else {},
    }
    later = {} if retry_after_s is None else {"Retry-After": str(_whole_seconds(retry_after_s))}
    return Response(
        # Pure ASCII: what a client wrote may hold what UTF-8 cannot.
        json.dumps({"error": body}, default=str),
        status_code=status,
        headers={**later, **(known.headers if known else {}), **(headers or {})},
        media_type="application/json",
    )


def _whole_seconds(seconds: float) -> int:
    """Rounds up, a little more for each client than for the next, so that they do not all come at once."""
    return max(1, math.ceil(seconds * random.uniform(1, 1 + _MAX_JITTER)))  # noqa: S311  (nothing to guess here)


def add_error_handlers(app: FastAPI) -> None:
    """Lets every error of a route, and of there being none, become an answer in the envelope."""
    app.add_exception_handler(AvatarError, _on_avatar_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)


async def _on_avatar_error(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, AvatarError)
    return answer(error)


async def _on_invalid(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Answers for parameters in path, query and headers; bodies are checked elsewhere."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return answer(
        ApiError(
            f"{name} {shown(first.get('input'))}: {first['msg'].lower()}",
            code="invalid_request",
            remedy=f"correct {name}",
            param=name,
        )
    )


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {shown(request.url.path)}"
    match error.status_code:
        case 404:
            told = ApiError(f"{what} does not exist", code="not_found", remedy="GET /openapi.json lists what does")
        case 405:
            told = ApiError(
                f"{what} is not allowed", code="method_not_allowed", remedy="GET /openapi.json lists what is"
            )
        case _:
            told = ApiError(f"{what}: {error.detail}", code="invalid_request", remedy="correct the request")
    return answer(told, headers=error.headers)
