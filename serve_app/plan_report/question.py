"""What `live-avatar plan` is asked: a video, known or supposed, the cards, and how ranks shall share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import InvalidRequestError
from serve_app.media.audio import measure_speech
from serve_app.media.image import load_portrait
from serve_app.planning.geometry import Fit, Size, effective_size, parse_size, plan_timeline
from serve_app.planning.hardware import Gpus, parse_gpus
from serve_app.planning.layout import HARDWARE_PRESETS, ParallelLayout
from serve_app.planning.workload import WHOLE_SPEECH_SECONDS, Workload
from serve_app.schemas.config import AppConfig
from serve_app.schemas.request import complete

AUTO = "auto"
_SUPPOSED_SAMPLE_RATE = 16_000
_CLASS_TOLERANCE_GIB = 2.0

Inventory = Callable[[], Gpus]
"""Looks what cards there are; raises InvalidRequestError where it finds none."""


@dataclass(frozen=True)
class PlanQuestion:
    """A video on cards; `layout` None leaves the choice to the plan."""

    work: Workload
    gpus: Gpus
    layout: ParallelLayout | None
    input_bytes: int


def read_question(
    given: dict[str, object], *, gpus: str, layout: ParallelLayout | None, inventory: Inventory, config: AppConfig
) -> PlanQuestion:
    """Reads the flags of a render as far as they are given; portrait and voice may be missing.

    Without a portrait the size's own aspect ratio stands for it, without a voice the length that num_clip allows, or
    else a minute. Raises InvalidRequestError, InputNotFoundError or UnsupportedMediaError.
    """
    cards = inventory() if gpus.strip().lower() == AUTO else parse_gpus(gpus)
    spec = complete({"image": "-", "audio": "-", "prompt": "-", **given}, defaults={})
    portrait, speech_seconds = _portrait(given, config), _speech_seconds(given, config)
    supposed = WHOLE_SPEECH_SECONDS if spec.num_clip is None else spec.num_clip * spec.infer_frames / 25
    seconds = speech_seconds or supposed
    timeline = plan_timeline(
        audio_samples=max(1, round(seconds * _SUPPOSED_SAMPLE_RATE)),
        sample_rate=_SUPPOSED_SAMPLE_RATE,
        num_clip=spec.num_clip,
        infer_frames=spec.infer_frames,
    )
    work = Workload(
        size=_effective(portrait, spec.size, spec.fit),
        infer_frames=spec.infer_frames,
        sample_steps=spec.sample_steps,
        num_frames=timeline.num_frames,
        speech_seconds=speech_seconds or WHOLE_SPEECH_SECONDS,
    )
    return PlanQuestion(work, cards, layout, _input_bytes(given))


def preset_layout(gpus: Gpus) -> ParallelLayout | None:
    """Returns the layout of the hardware preset for so many cards of about this memory."""
    for preset in HARDWARE_PRESETS.values():
        known = parse_gpus(preset.name)
        if known.count == gpus.count and abs(known.kind.total_gib - gpus.kind.total_gib) <= _CLASS_TOLERANCE_GIB:
            return preset.layout
    return None


def check_count(layout: ParallelLayout, gpus: Gpus) -> None:
    """Raises InvalidRequestError when the layout has more ranks than there are cards."""
    if layout.world_size > gpus.count:
        cards, ranks = ("1 card", "1 rank") if gpus.count == 1 else (f"{gpus.count} cards", f"{gpus.count} ranks")
        raise InvalidRequestError(
            f"layout {layout} has {layout.world_size} ranks, but {gpus} is {cards}",
            remedy=f"use a layout of {ranks}, or --gpus {layout.world_size}x{gpus.kind.name}",
            param="layout",
        )


def effective_of(size: str) -> Size:
    """Returns the size of a video for a portrait of the very shape that users write."""
    cap = parse_size(size)
    return effective_size(cap, cap, "area")


def _effective(portrait: Size | None, cap: Size, fit: Fit) -> Size:
    return effective_size(portrait or cap, cap, fit)


def _portrait(given: dict[str, object], config: AppConfig) -> Size | None:
    if "image" not in given:
        return None
    height, width, _ = load_portrait(Path(str(given["image"])), limits=config.image).shape
    return Size(width=width, height=height)


def _speech_seconds(given: dict[str, object], config: AppConfig) -> float | None:
    if "audio" not in given:
        return None
    return measure_speech(Path(str(given["audio"])), limits=config.audio).seconds


def _input_bytes(given: dict[str, object]) -> int:
    return sum(Path(str(given[name])).stat().st_size for name in ("image", "audio") if name in given)
