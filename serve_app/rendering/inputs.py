"""Reads the inputs of a spec and makes the task of them: decoded, fitted, cleaned."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import ftfy

from serve_app.errors import InvalidRequestError, shown
from serve_app.media.audio import read_speech
from serve_app.media.image import fit_portrait, load_portrait
from serve_app.media.probe import QualityWarning, length_warnings, quality_warnings, settings_warnings
from serve_app.planning.geometry import Size, effective_size, plan_timeline
from serve_app.schemas.config import AppConfig
from serve_app.schemas.render import RenderSpec
from serve_app.task import RenderTask


@dataclass(frozen=True, eq=False)
class RenderInputs:
    """The task for the model, and what only the file needs."""

    task: RenderTask
    sound: Path
    warnings: tuple[QualityWarning, ...]


def read_inputs(spec: RenderSpec, *, config: AppConfig) -> RenderInputs:
    """Decodes portrait and voice and plans the video.

    Raises InputNotFoundError, UnsupportedMediaError or InvalidRequestError: whatever is wrong with a request is
    found here, before the model is touched.
    """
    prompt = _prompt(spec.prompt)
    portrait = load_portrait(Path(spec.image), limits=config.image)
    portrait_size = Size(width=portrait.shape[1], height=portrait.shape[0])
    size = effective_size(portrait_size, spec.size, spec.fit)
    speech = read_speech(Path(spec.audio), limits=config.audio)
    timeline = plan_timeline(
        audio_samples=speech.num_samples,
        sample_rate=speech.sample_rate,
        num_clip=spec.num_clip,
        infer_frames=spec.infer_frames,
    )
    task = RenderTask(
        prompt=prompt,
        image=fit_portrait(portrait, size=size, fit=spec.fit),
        speech=speech.samples,
        timeline=timeline,
        sample_steps=spec.sample_steps,
        seed=spec.seed,
        replace_reference=spec.enable_online_decode,
    )
    warnings = (
        *quality_warnings(portrait=portrait_size, speech=speech, prompt=prompt),
        *settings_warnings(spec),
        *length_warnings(video_seconds=timeline.seconds, speech_seconds=speech.seconds, num_clip=spec.num_clip),
    )
    return RenderInputs(task=task, sound=Path(spec.audio), warnings=warnings)


def _prompt(written: str) -> str:
    cleaned = clean_prompt(written)
    if not cleaned:
        raise InvalidRequestError(
            f"prompt {shown(written)} is blank",
            remedy="describe person, clothes and pose, scene, light and style",
            param="prompt",
        )
    return cleaned


def clean_prompt(prompt: str) -> str:
    """Repairs broken encodings, resolves HTML entities (doubly escaped ones too) and collapses white space.

    The text encoder was trained on prompts cleaned in this way.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
