"""What can be asked for: models, presets, and how much of it there is."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from serve_app.api.context import Api
from serve_app.api.errors import ApiError
from serve_app.errors import did_you_mean, shown
from serve_app.schemas.presets import PRESETS, Preset

router = APIRouter(tags=["catalog"])


class Model(BaseModel):
    """A model that videos can be made with."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "live-avatar"


class ModelList(BaseModel):
    """All models; the first is the default."""

    object: Literal["list"] = "list"
    data: list[Model]


class PresetList(BaseModel):
    """All presets."""

    object: Literal["list"] = "list"
    data: list[Preset]


@router.get("/v1/models", summary="List models")
async def list_models(api: Api) -> ModelList:
    """Lists what the field `model` may be; the first is the default."""
    return ModelList(data=[Model(id=name) for name in api.config.models])


@router.get("/v1/models/{model_id}", summary="Look at a model")
async def get_model(model_id: str, api: Api) -> Model:
    """Answers a model, if it is there."""
    if model_id not in api.config.models:
        raise ApiError(
            f"model {shown(model_id)} does not exist{did_you_mean(model_id, api.config.models)}",
            code="model_not_found",
            remedy=f"use one of {', '.join(api.config.models)}",
            param="model_id",
        )
    return Model(id=model_id)


@router.get("/v1/presets", summary="List presets")
async def list_presets() -> PresetList:
    """Lists settings that belong together, as the field `preset` names them."""
    return PresetList(data=list(PRESETS.values()))


@router.get("/v1/capacity", summary="Groups and queue")
async def get_capacity(api: Api) -> dict[str, Any]:
    """Answers pools, groups and queue as they are now."""
    return dict(await api.service.capacity())
