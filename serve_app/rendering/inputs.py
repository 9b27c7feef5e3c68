"""Reads the inputs of a spec and makes the task of them: decoded, fitted, cleaned."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ftfy

from serve_app.errors import InvalidRequestError, shown
from serve_app.media.audio import measure_speech, read_speech
from serve_app.media.image import fit_portrait, load_portrait
from serve_app.media.probe import (
    QualityWarning,
    SpeechFacts,
    length_warnings,
    quality_warnings,
    settings_warnings,
)
from serve_app.planning.geometry import FPS, Size, Timeline, effective_size, plan_timeline
from serve_app.planning.workload import Workload
from serve_app.schemas.config import AppConfig
from serve_app.schemas.render import RenderSpec
from serve_app.storage.files import AudioFacts, Facts, ImageFacts, Kind
from serve_app.task import RenderTask


class VoiceFacts(SpeechFacts, Protocol):
    """What is known of a voice once it is read, its length too (`audio.Speech` is one)."""

    @property
    def num_samples(self) -> int: ...
    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class VideoFacts:
    """What a video will be: known before anything of it is made, from its spec and facts about its inputs."""

    prompt: str
    size: Size
    timeline: Timeline
    work: Workload
    warnings: tuple[QualityWarning, ...]


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
    check_prompt(spec.prompt)
    portrait = load_portrait(Path(spec.image), limits=config.image)
    portrait_size = Size(width=portrait.shape[1], height=portrait.shape[0])
    effective_size(portrait_size, spec.size, spec.fit)
    speech = read_speech(Path(spec.audio), limits=config.audio)
    video = describe(spec, portrait=portrait_size, speech=speech)
    task = RenderTask(
        prompt=video.prompt,
        image=fit_portrait(portrait, size=video.size, fit=spec.fit),
        speech=speech.samples,
        timeline=video.timeline,
        sample_steps=spec.sample_steps,
        seed=spec.seed,
        replace_reference=spec.enable_online_decode,
    )
    return RenderInputs(task=task, sound=Path(spec.audio), warnings=video.warnings)


def facts_of(path: Path, kind: Kind, *, config: AppConfig) -> Facts:
    """Decodes a file as what it shall be, in little memory, and returns what `describe` needs of it.

    Raises InputNotFoundError or UnsupportedMediaError.
    """
    if kind == "image":
        height, width, _ = load_portrait(path, limits=config.image).shape
        return ImageFacts(width=width, height=height)
    speech = measure_speech(path, limits=config.audio)
    return AudioFacts(
        num_samples=speech.num_samples,
        sample_rate=speech.sample_rate,
        peak=speech.peak,
        rms=speech.rms,
        clipped_share=speech.clipped_share,
    )


def describe(spec: RenderSpec, *, portrait: Size, speech: VoiceFacts) -> VideoFacts:
    """Returns what the video of a spec will be; raises InvalidRequestError for a prompt or a size that cannot be."""
    prompt = check_prompt(spec.prompt)
    size = effective_size(portrait, spec.size, spec.fit)
    timeline = plan_timeline(
        audio_samples=speech.num_samples,
        sample_rate=speech.sample_rate,
        num_clip=spec.num_clip,
        infer_frames=spec.infer_frames,
        max_seconds=spec.max_seconds,
    )
    work = Workload(
        size=size,
        infer_frames=spec.infer_frames,
        sample_steps=spec.sample_steps,
        num_frames=timeline.num_frames,
        speech_seconds=speech.seconds,
    )
    warnings = (
        *quality_warnings(portrait=portrait, speech=speech, prompt=prompt),
        *settings_warnings(spec),
        *_cut_warnings(spec, timeline, speech),
    )
    return VideoFacts(prompt=prompt, size=size, timeline=timeline, work=work, warnings=warnings)


def _cut_warnings(spec: RenderSpec, timeline: Timeline, speech: VoiceFacts) -> tuple[QualityWarning, ...]:
    """Warns of a voice that is cut, and names what cuts it."""
    by_clips = spec.num_clip is not None and timeline.num_frames == spec.num_clip * spec.infer_frames
    if spec.max_seconds is None or by_clips:
        return length_warnings(video_seconds=timeline.seconds, speech_seconds=speech.seconds, num_clip=spec.num_clip)
    if speech.seconds - timeline.seconds < 1 / FPS:
        return ()
    message = (
        f"seconds {spec.max_seconds:g} ends the video after {timeline.seconds:.2f} s of {speech.seconds:.2f} s of audio"
    )
    return (QualityWarning("cut_audio", message),)


def check_prompt(written: str) -> str:
    """Returns a prompt cleaned; raises InvalidRequestError for a blank one."""
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
