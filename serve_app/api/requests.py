"""From the body of a request to a job: checked, its files kept, its facts known, and offered to the Dispatcher."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from serve_app.api.bodies import Body
from serve_app.api.context import Context
from serve_app.api.errors import ApiError, refusal
from serve_app.api.inputs import Source, Sources, Uploaded, sources
from serve_app.errors import InvalidRequestError, UnavailableError, UploadNotFoundError, did_you_mean, shown
from serve_app.jobs.idempotency import IdempotencyKey
from serve_app.jobs.job import Document, Job, Priority
from serve_app.jobs.quote import Admitted, Reason, Rejected, check_deadline
from serve_app.jobs.submission import Submission
from serve_app.media.probe import QualityWarning
from serve_app.planning.geometry import Size
from serve_app.planning.network import TINY_CHECKPOINT
from serve_app.rendering.inputs import VideoFacts, check_prompt, describe
from serve_app.schemas.render import RenderSpec
from serve_app.schemas.request import REQUEST_FIELDS, complete
from serve_app.schemas.service import ServiceConfig
from serve_app.schemas.video import VideoCreate
from serve_app.storage.files import AudioFacts, ImageFacts, StoredFile

TINY_SIZE = "128*128"
"""Default size of the tiny model, as `live-avatar render` has it."""
_NOT_YET = "not kept yet"

Answer = TypeVar("Answer", Job, Admitted)


@dataclass(frozen=True)
class VideoRequest:
    """A request that is right as far as can be told without its files; its `spec` has none yet."""

    wanted: VideoCreate
    model: str
    priority: Priority
    spec: RenderSpec
    sources: Sources


@dataclass(frozen=True)
class InputFiles:
    """The files of one request, in the store."""

    image: StoredFile
    audio: StoredFile


@dataclass(frozen=True)
class Offer:
    """A request as the Dispatcher gets it, and what its video would be."""

    submission: Submission
    spec: RenderSpec
    video: VideoFacts
    warnings: tuple[QualityWarning, ...]


def read_request(body: Body, *, config: ServiceConfig) -> VideoRequest:
    """Checks all that needs no file; raises InvalidRequestError, or ApiError for a model that there is not."""
    _check_names(body)
    wanted = VideoCreate.from_request(dict(body.fields))
    if wanted.deadline_s is not None:
        check_deadline(wanted.deadline_s)
    model = _model(wanted.model, config)
    given = {name: value for name, value in wanted if name in REQUEST_FIELDS and value is not None}
    others = {"image": _NOT_YET, "audio": _NOT_YET, "max_seconds": wanted.seconds}
    spec = complete(given, defaults={**_default_size(model, config), **others})
    check_prompt(spec.prompt)
    priority = Priority(wanted.priority or config.default_priority)
    return VideoRequest(wanted, model, priority, spec, sources(wanted, body))


def _check_names(body: Body) -> None:
    known = VideoCreate.model_fields
    for name in body.fields:
        if name == "webhook_url":
            raise InvalidRequestError(
                "webhook_url is not supported in this version",
                remedy="leave it out, and follow GET /v1/videos/{id}/events",
                param=name,
            )
        if name not in known:
            raise InvalidRequestError(
                f"{shown(name)} is not a field of a video{did_you_mean(name, known)}",
                remedy=f"leave it out; fields are {', '.join(known)}",
                param=name,
            )
        if name in body.files:
            raise InvalidRequestError(f"{name} is a file part and a field", remedy="give it once", param=name)


def _model(name: str | None, config: ServiceConfig) -> str:
    if name is None:
        return config.models[0]
    if name not in config.models:
        raise ApiError(
            f"model {shown(name)} does not exist{did_you_mean(name, config.models)}",
            code="model_not_found",
            remedy=f"use one of {', '.join(config.models)}, or leave model out",
            param="model",
        )
    return name


def _default_size(model: str, config: ServiceConfig) -> Mapping[str, str]:
    is_tiny = any(pool.model == model and pool.checkpoint == TINY_CHECKPOINT for pool in config.pools)
    return {"size": TINY_SIZE} if is_tiny else {}


async def key_of(request: VideoRequest, header: str | None, api: Context) -> IdempotencyKey | None:
    """Returns the key of a request that has an Idempotency-Key: equal for what means the same, with the same files."""
    if header is None:
        return None
    files = {
        "image": await request.sources.image.sha256(api),
        "audio": await request.sources.audio.sha256(api),
    }
    meaning = {
        "model": request.model,
        "spec": {**request.spec.model_dump(mode="json"), **files},
        "priority": request.priority.value,
        "deadline_s": request.wanted.deadline_s,
        "user": request.wanted.user,
        "metadata": request.wanted.metadata or {},
        "accept_alternatives": bool(request.wanted.accept_alternatives),
    }
    return IdempotencyKey.of(header, meaning)


async def submit(request: VideoRequest, api: Context, *, key: IdempotencyKey | None) -> Job:
    """Keeps the files and hands the request over; raises ApiError when it is refused.

    Run it to its end: half of it would leave a job without files, or files without a job.
    """
    kept: list[str] = []
    try:
        files = await _keep(request, api, kept)
        job, _ = await _admitted(request, files, api.service.submit, key)
    except UnavailableError:  # the job may have been taken all the same: then it needs its files
        raise
    except BaseException:
        await asyncio.to_thread(forget, api, kept)
        raise
    if job.spec["image"] != files.image.id:  # the job that the same request made before
        await asyncio.to_thread(forget, api, kept)
    else:
        await asyncio.to_thread(api.files.sync, (files.image, files.audio))
    return job


async def plan(request: VideoRequest, api: Context) -> tuple[Admitted, Offer]:
    """Returns what `submit` would be promised, and keeps nothing; raises ApiError when it would be refused."""
    kept: list[str] = []
    try:
        files = await _keep(request, api, kept)
        return await _admitted(request, files, api.service.plan, None)
    finally:
        await asyncio.to_thread(forget, api, kept)


def forget(api: Context, file_ids: list[str]) -> None:
    """Removes files that no video needs; those that are gone already are no error."""
    for file_id in file_ids:
        with suppress(UploadNotFoundError):
            api.files.delete(file_id)


async def _keep(request: VideoRequest, api: Context, kept: list[str]) -> InputFiles:
    """Brings both inputs into the store, at once; `kept` gets the ids of those that are there, also after an error."""
    sources = request.sources
    stored = await asyncio.gather(
        sources.image.stored(api, "image"), sources.audio.stored(api, "audio"), return_exceptions=True
    )
    kept.extend(file.id for file in stored if isinstance(file, StoredFile))
    for file in stored:
        if isinstance(file, BaseException):
            raise file
    image, audio = stored
    assert isinstance(image, StoredFile)
    assert isinstance(audio, StoredFile)
    return InputFiles(image, audio)


async def _admitted(
    request: VideoRequest,
    files: InputFiles,
    ask: Callable[[Submission], Awaitable[Answer | Rejected]],
    key: IdempotencyKey | None,
) -> tuple[Answer, Offer]:
    """Asks for the video, and where that never fits and the client agrees, for the nearest that does."""
    offer = _offer(request, request.spec, files, key)
    answer = await ask(offer.submission)
    if not isinstance(answer, Rejected):
        return answer, offer
    if answer.reason is Reason.NEVER_FITS and request.wanted.accept_alternatives:
        for spec, warning in _alternatives(request.spec, answer.figures):
            instead = _offer(request, spec, files, key, warning)
            second = await ask(instead.submission)
            if not isinstance(second, Rejected):
                return second, instead
    raise refusal(answer)


def _alternatives(spec: RenderSpec, figures: Document) -> Iterator[tuple[RenderSpec, QualityWarning]]:
    """Yields the nearest change: as an area like the request's own size if that was one, else or then exactly."""
    nearest = figures.get("nearest")
    if not isinstance(nearest, list) or not nearest:
        return
    first = nearest[0]
    warning = QualityWarning(
        "alternative_taken", f"what was asked for never fits; taken was the nearest that does: {first['change']}"
    )
    for fit in dict.fromkeys((spec.fit, "exact")):
        changes = {"size": first["size"], "infer_frames": first["infer_frames"], "fit": fit}
        yield RenderSpec.from_request(**{**spec.model_dump(), **changes}), warning


def _offer(
    request: VideoRequest,
    wanted: RenderSpec,
    files: InputFiles,
    key: IdempotencyKey | None,
    *more: QualityWarning,
) -> Offer:
    assert isinstance(files.image.facts, ImageFacts)
    assert isinstance(files.audio.facts, AudioFacts)
    portrait = Size(files.image.facts.width, files.image.facts.height)
    spec = wanted.model_copy(update={"image": files.image.id, "audio": files.audio.id})
    video = describe(spec, portrait=portrait, speech=files.audio.facts)
    warnings = (*more, *video.warnings)
    submission = Submission(
        model=request.model,
        spec=spec.model_dump(mode="json"),
        work=video.work,
        priority=request.priority,
        deadline_s=request.wanted.deadline_s,
        inputs={
            "image": _uploaded(request.sources.image),
            "audio": _uploaded(request.sources.audio),
            "size": str(video.size),
            "num_frames": video.timeline.num_frames,
            "seconds": video.timeline.seconds,
            "warnings": [{"code": warning.code, "message": warning.message} for warning in warnings],
            "model": request.model,
            "user": request.wanted.user,
        },
        input_bytes=files.image.num_bytes + files.audio.num_bytes,
        metadata=request.wanted.metadata or {},
        key=key,
    )
    return Offer(submission, spec, video, warnings)


def _uploaded(source: Source) -> str | None:
    """Returns the id of an upload as its owner knows it."""
    return source.file_id if isinstance(source, Uploaded) else None
