"""What may spoil a video without stopping it: warnings as values, made from facts alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from serve_app.planning.geometry import FPS, Size
from serve_app.schemas.render import RenderSpec, differences_from_default
from serve_app.task import MODEL_SAMPLE_RATE

MIN_PORTRAIT_SIDE = 512
MIN_PROMPT_WORDS = 5
SILENT_PEAK = 0.01
"""-40 dBFS: nothing in the sound is louder."""
SILENT_RMS = 0.001
"""-60 dBFS: quieter than the noise floor of a usual room recording."""
MAX_CLIPPED_SHARE = 0.001
# Chinese and Japanese are written without spaces: each of their characters counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class QualityWarning:
    """One reason why the result may disappoint; `code` is stable, `message` says what would help."""

    code: str
    message: str

    def __str__(self) -> str:
        return self.message


class SpeechFacts(Protocol):
    """What is known of a voice once it is read (`audio.Speech` is one)."""

    @property
    def sample_rate(self) -> int: ...
    @property
    def peak(self) -> float: ...
    @property
    def rms(self) -> float: ...
    @property
    def clipped_share(self) -> float: ...


def quality_warnings(*, portrait: Size, speech: SpeechFacts, prompt: str) -> tuple[QualityWarning, ...]:
    """Returns every warning about the inputs of one video: portrait, then voice, then prompt."""
    return (*portrait_warnings(portrait), *speech_warnings(speech), *prompt_warnings(prompt))


def settings_warnings(spec: RenderSpec) -> tuple[QualityWarning, ...]:
    """Warns of settings that are not the model's defaults, whether a preset or the user chose them."""
    said = differences_from_default(sample_steps=spec.sample_steps, infer_frames=spec.infer_frames)
    return tuple(QualityWarning(f"other_{field}", message) for field, message in said.items())


def length_warnings(*, video_seconds: float, speech_seconds: float, num_clip: int | None) -> tuple[QualityWarning, ...]:
    """Warns of a video that num_clip ends before its voice does."""
    if speech_seconds - video_seconds < 1 / FPS:
        return ()
    message = f"num_clip {num_clip} ends the video after {video_seconds:.2f} s of {speech_seconds:.2f} s of audio"
    return (QualityWarning("cut_audio", message),)


def portrait_warnings(portrait: Size) -> tuple[QualityWarning, ...]:
    """Warns of a portrait with a side under 512 pixels."""
    if min(portrait.width, portrait.height) >= MIN_PORTRAIT_SIDE:
        return ()
    message = f"the portrait is {portrait}; from {MIN_PORTRAIT_SIDE}x{MIN_PORTRAIT_SIDE} on faces come out sharper"
    return (QualityWarning("small_portrait", message),)


def speech_warnings(speech: SpeechFacts) -> tuple[QualityWarning, ...]:
    """Warns of a sample rate under 16 kHz, of silence and of clipping."""
    found = []
    if speech.sample_rate < MODEL_SAMPLE_RATE:
        message = (
            f"the audio has {speech.sample_rate} samples per second; lips follow better from {MODEL_SAMPLE_RATE} on"
        )
        found.append(QualityWarning("low_sample_rate", message))
    if speech.peak < SILENT_PEAK or speech.rms < SILENT_RMS:
        level = f"peak {speech.peak:.4f}, rms {speech.rms:.5f} of full scale"
        message = f"the audio is almost silent ({level}); check the recording"
        found.append(QualityWarning("silent_audio", message))
    if speech.clipped_share > MAX_CLIPPED_SHARE:
        message = f"{speech.clipped_share:.1%} of the audio is clipped at full scale; record it at a lower level"
        found.append(QualityWarning("clipped_audio", message))
    return tuple(found)


def prompt_warnings(prompt: str) -> tuple[QualityWarning, ...]:
    """Warns of a prompt under 5 words."""
    num_words = len(_WORD.findall(prompt))
    if num_words >= MIN_PROMPT_WORDS:
        return ()
    message = f"the prompt has {num_words} words; describe person, place and mood in {MIN_PROMPT_WORDS} or more"
    return (QualityWarning("short_prompt", message),)
