"""RenderSpec: one video as it was asked for, complete and checked."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationError

from serve_app.errors import InvalidRequestError
from serve_app.planning.geometry import Fit, Size, check_infer_frames, parse_size
from serve_app.schemas.config import Frozen

DEFAULT_SIZE = "704*384"
DEFAULT_INFER_FRAMES = 48
DEFAULT_SAMPLE_STEPS = 4
DEFAULT_SEED = 420
MAX_SAMPLE_STEPS = 10
MAX_PROMPT_CHARACTERS = 4_000


def _infer_frames(value: int) -> int:
    check_infer_frames(value)
    return value


def _size(value: object) -> Size:
    return parse_size(str(value))


WrittenSize = Annotated[Size, BeforeValidator(_size), PlainSerializer(str, return_type=str)]


class RenderSpec(Frozen):
    """Where the inputs are and how the video shall be; nothing in it depends on the machine.

    `size` is an area cap with fit "area" and the exact size with fit "exact". `num_clip` None: the audio decides
    the length. `enable_online_decode` replaces the portrait by the first generated frame after the first clip.
    """

    image: str = Field(min_length=1)
    audio: str = Field(min_length=1)
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)
    size: WrittenSize = Field(default=DEFAULT_SIZE, validate_default=True)
    fit: Fit = "area"
    num_clip: int | None = Field(default=None, ge=1, le=100_000)
    infer_frames: Annotated[int, AfterValidator(_infer_frames)] = DEFAULT_INFER_FRAMES
    sample_steps: int = Field(default=DEFAULT_SAMPLE_STEPS, ge=1, le=MAX_SAMPLE_STEPS)
    seed: int = Field(default=DEFAULT_SEED, ge=0, lt=2**63)
    enable_online_decode: bool = True

    @classmethod
    def from_request(cls, **values: Any) -> Self:  # noqa: ANN401  (the values are what this method checks)
        """Checks user input; raises InvalidRequestError that names the field, its value and the rule."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise _invalid(error) from error


def _invalid(error: ValidationError) -> InvalidRequestError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "missing":
            message, remedy = f"{name} is missing", f"give {name}"
        case "extra_forbidden":
            message, remedy = f"{name} is not a field of a render", f"leave it out; fields are {_FIELDS}"
        case _:
            # A prompt of a thousand lines does not belong into a message.
            message, remedy = f"{name} {reprlib.repr(first['input'])}: {first['msg'].lower()}", f"correct {name}"
    return InvalidRequestError(message, remedy=remedy, param=name)


_FIELDS = ", ".join(RenderSpec.model_fields)
