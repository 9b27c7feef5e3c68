"""Whether the API lives, and whether requests are taken."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from serve_app.api.context import Api

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """All is well."""

    status: Literal["ok"] = "ok"


@router.get("/livez", summary="Does the process answer?")
async def livez() -> Health:
    """Answers 200 as long as it can answer at all."""
    return Health()


@router.get("/readyz", summary="Are requests taken?")
async def readyz(api: Api) -> Health:
    """Answers 503 while the service starts or restarts; accepted videos are not lost by that."""
    await api.service.check_ready()
    return Health()
