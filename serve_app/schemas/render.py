"""RenderSpec: one video as it was asked for, complete and checked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationError
from pydantic_core import PydanticCustomError

from serve_app.errors import InvalidRequestError, did_you_mean, shown
from serve_app.planning.geometry import FPS, Fit, Size, check_infer_frames, parse_size
from serve_app.schemas.config import Frozen

DEFAULT_SIZE = "704*384"
DEFAULT_INFER_FRAMES = 48
DEFAULT_SAMPLE_STEPS = 4
"""The number that the published weights were distilled for."""
DEFAULT_SEED = 420
MAX_SAMPLE_STEPS = 10
MAX_PROMPT_CHARACTERS = 4_000


def _number(value: object) -> object:
    """Refuses true and false, which would pass for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


def _infer_frames(value: int) -> int:
    check_infer_frames(value)
    return value


def _size(value: object) -> Size:
    if not isinstance(value, str | Size):
        raise PydanticCustomError("size_type", "Input should be text like 704*384")
    return parse_size(str(value))


WrittenSize = Annotated[Size, BeforeValidator(_size), PlainSerializer(str, return_type=str)]
NumClip = Annotated[int, Field(ge=1, le=100_000), BeforeValidator(_number)]
InferFrames = Annotated[int, AfterValidator(_infer_frames), BeforeValidator(_number)]
SampleSteps = Annotated[int, Field(ge=1, le=MAX_SAMPLE_STEPS), BeforeValidator(_number)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_number)]
Seconds = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False), BeforeValidator(_number)]


class RenderSpec(Frozen):
    """Where the inputs are and how the video shall be; nothing in it depends on the machine.

    `size` is an area cap with fit "area" and the exact size with fit "exact". `num_clip` and `max_seconds` end the
    video before its audio does; None: the audio decides. `enable_online_decode` replaces the portrait by the first
    generated frame after the first clip.
    """

    image: str = Field(min_length=1)
    audio: str = Field(min_length=1)
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)
    size: WrittenSize = Field(default=DEFAULT_SIZE, validate_default=True)
    fit: Fit = "area"
    num_clip: NumClip | None = None
    infer_frames: InferFrames = DEFAULT_INFER_FRAMES
    sample_steps: SampleSteps = DEFAULT_SAMPLE_STEPS
    seed: Seed = DEFAULT_SEED
    enable_online_decode: bool = True
    max_seconds: Seconds | None = None

    @classmethod
    def from_request(cls, **values: Any) -> Self:  # noqa: ANN401  (the values are what this method checks)
        """Checks user input; raises InvalidRequestError that names the field, its value and the rule."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise invalid_field(error, known=cls.model_fields) from error


def invalid_field(error: ValidationError, *, known: Collection[str]) -> InvalidRequestError:
    """Returns the first thing that is wrong, for people; `known` are the fields that there are."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "missing":
            message, remedy = f"{name} is missing", f"give {name}"
        case "extra_forbidden":
            return unknown_field(name, known)
        case "string_unicode":
            message = f"{name} {shown(first['input'])} is not UTF-8"
            remedy = f"write {name} in UTF-8; rename a file whose name is not"
        case _:
            message, remedy = f"{name} {shown(first['input'])}: {first['msg'].lower()}", f"correct {name}"
    return InvalidRequestError(message, remedy=remedy, param=name)


def unknown_field(name: str, known: Collection[str]) -> InvalidRequestError:
    """Returns the error for a field that a render does not have; it names those that it has."""
    return InvalidRequestError(
        f"{shown(name)} is not a field of a render{did_you_mean(name, known)}",
        remedy=f"leave it out; fields are {', '.join(known)}",
        param=name,
    )


def differences_from_default(*, sample_steps: int, infer_frames: int) -> dict[str, str]:
    """Says by field what is asked for otherwise than by default, and what that means for the video."""
    said = {}
    if sample_steps != DEFAULT_SAMPLE_STEPS:
        said["sample_steps"] = (
            f"sample_steps is {sample_steps}, the model was distilled for {DEFAULT_SAMPLE_STEPS}: pictures will differ"
        )
    if infer_frames != DEFAULT_INFER_FRAMES:
        said["infer_frames"] = (
            f"infer_frames is {infer_frames}, the default is {DEFAULT_INFER_FRAMES}: "
            f"the model looks back {infer_frames / FPS:.2f} s instead of {DEFAULT_INFER_FRAMES / FPS:.2f} s"
        )
    return said
