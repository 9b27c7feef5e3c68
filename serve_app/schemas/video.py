"""What goes in and out of the API about videos: the request, the video object, the quote."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from serve_app.planning.geometry import Fit
from serve_app.schemas.config import Frozen
from serve_app.schemas.presets import PRESETS
from serve_app.schemas.render import (
    DEFAULT_INFER_FRAMES,
    DEFAULT_SAMPLE_STEPS,
    DEFAULT_SEED,
    MAX_PROMPT_CHARACTERS,
    InferFrames,
    NumClip,
    SampleSteps,
    Seconds,
    Seed,
    WrittenSize,
    invalid_field,
)

MAX_METADATA = 16
MAX_USER_CHARACTERS = 512

PriorityName = Literal["interactive", "standard", "bulk"]
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


def _deadline(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "Input should be a number of seconds")
    return value


class ImageReference(Frozen):
    """A portrait that is not a part of the request's body: one of the two."""

    image_url: str | None = Field(default=None, description="a data: URI in base64; no other URLs in this version")
    file_id: str | None = Field(default=None, description="what POST /v1/files answered")


class AudioReference(Frozen):
    """A voice that is not a part of the request's body: one of the two."""

    audio_url: str | None = Field(default=None, description="a data: URI in base64; no other URLs in this version")
    file_id: str | None = Field(default=None, description="what POST /v1/files answered")


class VideoCreate(Frozen):
    """A video to be made. Portrait and voice come as parts of a form, or by reference; both are needed."""

    model_config = ConfigDict(json_schema_extra={"required": ["prompt"]})

    model: str | None = Field(default=None, description="one of GET /v1/models; the first of them is the default")
    prompt: str | None = Field(
        default=None,
        max_length=MAX_PROMPT_CHARACTERS,
        description="what the video shows: person, clothes and pose, scene, light, style",
    )
    image_reference: ImageReference | None = Field(default=None, description="the portrait")
    input_reference: ImageReference | None = Field(
        default=None, description="the portrait as the OpenAI SDK names it: a file part, or what image_reference takes"
    )
    audio_reference: AudioReference | None = Field(default=None, description="the voice")
    size: Annotated[WrittenSize, WithJsonSchema({"type": "string", "examples": ["704x384"]})] | None = Field(
        default=None, description="WIDTHxHEIGHT: an area cap, or exactly that with fit=exact"
    )
    fit: Fit | None = Field(default=None, description='"area" keeps the portrait\'s shape, "exact" the size')
    seconds: Seconds | None = Field(
        default=None, description="ends the video before its audio does; of audio, num_clip and seconds the least wins"
    )
    preset: Annotated[str, WithJsonSchema({"type": "string", "enum": list(PRESETS)})] | None = Field(
        default=None, description="settings that belong together (GET /v1/presets); what else is given wins over them"
    )
    num_clip: NumClip | None = Field(default=None, description="ends the video after so many clips")
    infer_frames: InferFrames | None = Field(
        default=None, description=f"frames per clip and KV window, a multiple of 12 (default {DEFAULT_INFER_FRAMES})"
    )
    sample_steps: SampleSteps | None = Field(
        default=None, description=f"denoising steps per block (default {DEFAULT_SAMPLE_STEPS})"
    )
    sample_guide_scale: float | None = Field(default=None, description="0 only: guidance has no effect in this model")
    seed: Seed | None = Field(default=None, description=f"same seed, same video (default {DEFAULT_SEED})")
    enable_online_decode: bool | None = Field(
        default=None, description="replace the portrait by the first generated frame after the first clip"
    )
    deadline_s: Annotated[float, BeforeValidator(_deadline)] | None = Field(
        default=None, description="seconds from now within which the video is of use; promised, or refused"
    )
    priority: PriorityName | None = Field(default=None, description="decides the deadline where none is given")
    user: str | None = Field(default=None, max_length=MAX_USER_CHARACTERS, description="whom the request is for")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(
        default=None, max_length=MAX_METADATA, description="your own labels, told again with the video"
    )
    accept_alternatives: bool | None = Field(
        default=None, description="take the nearest that fits when what is asked for never does; warnings tell which"
    )

    @classmethod
    def from_request(cls, fields: dict[str, Any]) -> Self:
        """Checks the fields of a body; raises InvalidRequestError that names the field, its value and the rule."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise invalid_field(error, known=cls.model_fields) from error


class Warned(Frozen):
    """One reason why the video may disappoint; `code` is stable."""

    code: str
    message: str


class Quoted(Frozen):
    """When the video would be, or was to be, done. Moments are told in seconds from when that was said."""

    layout: str = Field(description="the pool of groups that makes it")
    seconds: float = Field(description="how long it takes alone")
    promise_in_s: float | None = Field(description="the latest finish; null for bulk, to which none is promised")
    start_in_s: float = Field(description="expected start")
    finish_in_s: float = Field(description="expected finish")
    position: int = Field(description="jobs before it")
    first_frame_s: float | None = Field(description="from its start to its first block, as expected")
    rank_bytes: tuple[int, ...] = Field(description="what each rank needs of its card's memory at the worst moment")
    card_bytes: int | None = Field(description="memory of that card")


class Plan(Quoted):
    """What POST /v1/videos would promise now for the same body."""

    object: Literal["video.plan"] = "video.plan"
    model: str
    size: str = Field(description="the true size of the video")
    fps: int
    num_frames: int
    video_seconds: float = Field(description="length of the video")
    warnings: tuple[Warned, ...]


class VideoError(Frozen):
    """Why a video failed."""

    code: str
    message: str


class Video(Frozen):
    """A video that was accepted, as it is now. Times are whole seconds since 1970."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int = Field(description="percent; never falls; 99 until the file is whole")
    prompt: str
    size: str
    seconds: str = Field(description="length of the video")
    fps: int
    num_frames: int
    created_at: int
    started_at: int | None
    completed_at: int | None = Field(description="when it ended, in whatever way")
    expires_at: int | None = Field(description="when an ended video is removed")
    error: VideoError | None
    remixed_from_video_id: None = None
    quote: Quoted | None
    inference_time_s: float | None
    queue_time_s: float | None
    peak_memory_mb: float | None = Field(
        description="MiB of the rank that took the most: of a GPU what was allocated during this video, of a rank on "
        "the CPU the most that its process ever held"
    )
    attempt: int
    cancel_requested: bool
    priority: PriorityName
    user: str | None
    metadata: dict[str, str]
    image: str | None = Field(description="id of the portrait, where it was uploaded")
    audio: str | None = Field(description="id of the voice, where it was uploaded")
    warnings: tuple[Warned, ...]


class VideoList(Frozen):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: tuple[Video, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(Frozen):
    """Something is gone."""

    id: str
    object: str
    deleted: Literal[True] = True
