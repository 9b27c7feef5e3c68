"""The voice, twice: as 16 kHz mono for the model, and as the sound of the video at its own rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from serve_app.errors import AudioTooShortError
from serve_app.media.pcm import open_pcm
from serve_app.schemas.config import AudioLimits
from serve_app.task import MODEL_SAMPLE_RATE

FULL_SCALE = 0.9999
"""From here on a sample counts as full scale (the largest int16 is 0.99997)."""
TRACK_RATES = (32_000, 44_100, 48_000, 64_000, 88_200, 96_000)
"""Rates that AAC has and that the video's sound keeps."""


@dataclass(frozen=True, eq=False)
class Speech:
    """A voice as the model hears it, and what is known of its source.

    `samples` is float32 [n]: mono (mean over the channels), 16 kHz, full scale 1. The rest describes the
    source: `num_samples` per channel at `sample_rate`; `peak` over all channels, `rms` of their mean, both 0 .. 1;
    `clipped_share`: how many of all samples stand at full scale beside another one.
    """

    samples: NDArray[np.float32]
    sample_rate: int
    channels: int
    num_samples: int
    peak: float
    rms: float
    clipped_share: float

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate


def read_speech(path: Path, *, limits: AudioLimits) -> Speech:
    """Reads a voice in one pass; of the original, only one chunk at a time is in memory.

    Raises InputNotFoundError without a file, UnsupportedMediaError when it is not whole sound within `limits`.
    """
    with open_pcm(path, limits=limits) as pcm:
        levels = _Levels(pcm.channels)
        mono = (levels.add(chunk) for chunk in pcm.chunks)
        samples = to_model_rate(mono, sample_rate=pcm.sample_rate)
        _check_min_seconds(path, levels.num_samples / pcm.sample_rate, limits)
        return levels.speech(samples, pcm.sample_rate)


def measure_speech(path: Path, *, limits: AudioLimits) -> Speech:
    """Reads a voice as `read_speech` does and tells the same of it, with no samples: hours of it take no memory."""
    with open_pcm(path, limits=limits) as pcm:
        levels = _Levels(pcm.channels)
        for chunk in pcm.chunks:
            levels.add(chunk)
        _check_min_seconds(path, levels.num_samples / pcm.sample_rate, limits)
        return levels.speech(np.empty(0, np.float32), pcm.sample_rate)


def to_model_rate(mono: Iterator[NDArray[np.float32]], *, sample_rate: int) -> NDArray[np.float32]:
    """Resamples chunks of float32, n samples in all, to 16 kHz: float32 [ceil(n * 16000 / sample_rate)].

    soxr HQ, as the model was trained with (golden `audio/resample`); beside steep edges it overshoots +-1 a little.
    """
    num_source = 0

    def counted() -> Iterator[NDArray[np.float32]]:
        nonlocal num_source
        for chunk in mono:
            num_source += len(chunk)
            yield chunk

    samples = _gathered(_resampled(counted(), sample_rate, MODEL_SAMPLE_RATE))
    return _with_length(samples, num_source, sample_rate)


def _resampled(chunks: Iterator[NDArray[np.float32]], from_rate: int, to_rate: int) -> Iterator[NDArray[np.float32]]:
    """Yields the chunks ([n] or [n, channels]) at another rate; the result does not depend on how they are cut."""
    if from_rate == to_rate:
        yield from chunks
        return
    first = next(chunks, None)
    if first is None:
        return
    channels = first.shape[1] if first.ndim == 2 else 1
    stream = soxr.ResampleStream(from_rate, to_rate, channels, dtype="float32", quality="HQ")
    yield stream.resample_chunk(first)
    for chunk in chunks:
        yield stream.resample_chunk(chunk)
    yield stream.resample_chunk(first[:0], last=True)


def _gathered(chunks: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
    # A growing buffer: joining a list of chunks would hold hours of sound twice.
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk.astype(np.float32, copy=False).tobytes()
    return np.frombuffer(buffer, dtype=np.float32)


def _with_length(samples: NDArray[np.float32], num_source: int, sample_rate: int) -> NDArray[np.float32]:
    """Pads the one sample that the resampler may leave out at the end."""
    missing = math.ceil(num_source * MODEL_SAMPLE_RATE / sample_rate) - len(samples)
    return samples if missing == 0 else np.pad(samples, (0, missing))


def _check_min_seconds(path: Path, seconds: float, limits: AudioLimits) -> None:
    if seconds < limits.min_seconds:
        raise AudioTooShortError(
            f'"{path}" has {seconds:.3f} s of sound; at least {limits.min_seconds:g} s are needed',
            remedy="give a longer recording",
            param="audio",
        )


@dataclass
class _Levels:
    """Sums up, chunk by chunk, how loud a source is."""

    channels: int
    num_samples: int = 0
    peak: float = 0.0
    mono_squares: float = 0.0
    num_clipped: int = 0

    def add(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        """Counts a chunk [n, channels] in; returns its mean over the channels [n]."""
        loudness = np.abs(chunk)
        mono: NDArray[np.float32] = chunk.mean(axis=1, dtype=np.float32)
        self.num_samples += len(chunk)
        self.peak = max(self.peak, float(loudness.max(initial=0.0)))
        self.mono_squares += float(np.square(mono, dtype=np.float64).sum())
        self.num_clipped += _count_clipped(loudness)
        return mono

    def speech(self, samples: NDArray[np.float32], sample_rate: int) -> Speech:
        return Speech(
            samples=samples,
            sample_rate=sample_rate,
            channels=self.channels,
            num_samples=self.num_samples,
            peak=self.peak,
            rms=math.sqrt(self.mono_squares / self.num_samples),
            clipped_share=self.num_clipped / (self.num_samples * self.channels),
        )


def _count_clipped(loudness: NDArray[np.float32]) -> int:
    """Counts samples at full scale whose predecessor is there too: a loud wave only touches it, a clipped one stays."""
    is_full = loudness >= FULL_SCALE
    return int(np.count_nonzero(is_full[1:] & is_full[:-1]))


@dataclass(eq=False)
class SoundTrack:
    """The sound of a video, read on demand: mono or stereo at a rate that AAC has."""

    sample_rate: int
    channels: int
    _chunks: Iterator[NDArray[np.float32]]
    _rest: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self._rest = np.zeros((0, self.channels), dtype=np.float32)

    def read(self, num_samples: int) -> NDArray[np.float32]:
        """Returns the next float32 [num_samples, channels]; fewer, then none, once the sound is over."""
        parts, missing = [self._rest[:0]], num_samples
        while missing > 0:
            if len(self._rest) == 0:
                chunk = next(self._chunks, None)
                if chunk is None:
                    break
                self._rest = chunk
            part, self._rest = self._rest[:missing], self._rest[missing:]
            parts.append(part)
            missing -= len(part)
        return np.concatenate(parts)


@contextmanager
def open_sound_track(path: Path, *, limits: AudioLimits) -> Iterator[SoundTrack]:
    """Opens the user's sound for the video; memory does not grow with its length.

    Raises as `read_speech` does, while reading too.
    """
    with open_pcm(path, limits=limits) as pcm:
        rate = track_rate(pcm.sample_rate)
        mix = _stereo_mix(pcm.speakers)
        mixed = pcm.chunks if mix is None else (chunk @ mix for chunk in pcm.chunks)
        yield SoundTrack(rate, min(pcm.channels, 2), _resampled(mixed, pcm.sample_rate, rate))


def track_rate(sample_rate: int) -> int:
    """Returns the rate of the video's sound for a source rate.

    A video starts with an incomplete AAC frame of 1024 samples (see `video_writer`): 23 ms at 44.1 kHz but 128 ms
    at 8 kHz. Lower rates are therefore multiplied up, to 44100 where that is a multiple, else to 48000.
    """
    if sample_rate in TRACK_RATES:
        return sample_rate
    return 44_100 if 44_100 % sample_rate == 0 else 48_000


def _stereo_mix(speakers: tuple[str, ...]) -> NDArray[np.float32] | None:
    """Returns the matrix [channels, 2] that mixes more than two channels down; None where there is nothing to mix.

    Left speakers go left, right ones right, all others to both sides; each side is divided by its sum
    of weights, so that it cannot clip.
    """
    if len(speakers) <= 2:
        return None
    centre = math.sqrt(0.5)
    weights = [
        (1.0, 0.0) if name.endswith("L") else (0.0, 1.0) if name.endswith("R") else (centre, centre)
        for name in speakers
    ]
    mix: NDArray[np.float32] = np.array(weights, dtype=np.float32)
    mix /= mix.sum(axis=0).clip(min=centre)
    return mix
