"""Decodes the sound of a hostile file, chunk by chunk, from its first sample on.

Sample 0 is t = 0: encoder delays and edit lists are the decoder's affair, start times in the file are ignored.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from serve_app.errors import UnsupportedMediaError
from serve_app.media.files import open_input
from serve_app.schemas.config import AudioLimits

# Playlists and whatever else names further files or addresses are not in the list: a file speaks for itself alone.
FORMATS = (
    "wav,w64,aiff,au,caf,mp3,aac,flac,ogg,mov,mp4,m4a,matroska,webm,avi,asf,flv,mpeg,mpegts,amr,amrnb,amrwb,ac3,eac3,wv"
)
LENGTH_TOLERANCE_S = 0.1
"""A file may hold this much less than its header promises: lossy codecs count their own delay differently."""
# The order of FFmpeg's native layouts.
_SPEAKERS = ("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR", "TC", "TFL", "TFC", "TFR", "TBL")
_EXACT_LENGTHS = ("wav", "flac", "ogg", "aiff", "au", "caf", "w64")


@dataclass(frozen=True, eq=False)
class Pcm:
    """Sound while it is decoded: `chunks` yields float32 [samples, channels] within [-1, 1], once.

    `speakers` names the place of each channel as FFmpeg does: FL, FR, FC, ...
    """

    sample_rate: int
    speakers: tuple[str, ...]
    chunks: Iterator[NDArray[np.float32]]

    @property
    def channels(self) -> int:
        return len(self.speakers)


@contextmanager
def open_pcm(path: Path, *, limits: AudioLimits) -> Iterator[Pcm]:
    """Opens the first audio stream of a file; everything is closed at the end of the `with`.

    Raises InputNotFoundError without a file, UnsupportedMediaError when it is not sound; `chunks` raises
    UnsupportedMediaError where the sound is damaged, ends too early or passes `limits.max_seconds`.
    """
    with open_input(path, max_bytes=limits.max_bytes, param="audio") as file:
        promised_seconds = _wav_seconds(file)
        with _opened(path, file) as container:
            stream = _audio_stream(path, container)
            promise = promised_seconds or _promised_seconds(container, stream)
            frames = _frames(path, container, stream, promise)
            first = next(frames, None)
            if first is None:
                raise _unsupported(f'"{path}" has no samples', "give a file with sound")
            speakers = tuple(channel.name for channel in first.layout.channels)
            if len(speakers) > limits.max_channels:
                raise _unsupported(
                    f'"{path}" has {len(speakers)} channels; allowed are up to {limits.max_channels}',
                    "mix it down to mono or stereo",
                )
            if first.sample_rate > limits.max_sample_rate:
                raise _unsupported(
                    f'"{path}" has {first.sample_rate} samples per second; allowed are up to {limits.max_sample_rate}',
                    "resample it to 48000",
                )
            chunks = _chunks(path, first, frames, limits.max_seconds)
            if promise is not None and "mp4" in container.format.name:
                # libav skips the delay in front, but not the filling of the last packet.
                chunks = _cut(chunks, round(promise * first.sample_rate))
            yield Pcm(sample_rate=first.sample_rate, speakers=speakers, chunks=chunks)


def _opened(path: Path, file: BinaryIO) -> InputContainer:
    # The open file, not its name: libav would take a name like "http:x" for an address. And libav reads it by itself:
    # a callback into Python would swallow the signal that stops the command, and print what damaged headers provoke.
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    options = {"fd": f"{file.fileno()}", "protocol_whitelist": "fd", "format_whitelist": FORMATS}
    try:
        # Titles in other encodings than UTF-8 are common and of no interest.
        return av.open("fd:", "r", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise _unsupported(f'"{path}" is not a sound file ({_reason(error)})', _KINDS) from error


def _audio_stream(path: Path, container: InputContainer) -> AudioStream:
    if not container.streams.audio:
        raise _unsupported(f'"{path}" ({container.format.name}) has no audio stream', "give a file with sound")
    return container.streams.audio[0]


def _promised_seconds(container: InputContainer, stream: AudioStream) -> float | None:
    """Returns the length that the file's header states, or None where it is unknown or only an estimate."""
    kinds = container.format.name.split(",")
    is_exact = (
        kinds[0] in _EXACT_LENGTHS
        or ("mp4" in kinds and stream.frames > 0)  # zero in fragmented files, which state no length
        or ("mp3" in kinds and bool(stream.start_time))  # the gapless header states delay and length
    )
    if not is_exact or stream.duration is None or stream.time_base is None:
        return None
    return float(stream.duration * stream.time_base)


def _frames(
    path: Path, container: InputContainer, stream: AudioStream, promised_seconds: float | None
) -> Iterator[AudioFrame]:
    """Yields decoded frames; checks that they fill the promised length."""
    seconds = 0.0
    try:
        for packet in container.demux(stream):
            frames = packet.decode()
            _check_speakers(path, frames)
            for frame in frames:
                seconds += frame.samples / frame.sample_rate
                yield frame
    # IndexError: PyAV meets a packet of a stream that the header does not list.
    except (av.error.FFmpegError, OSError, IndexError) as error:
        # Many files carry foreign bytes after their last sample; before it, they are damage.
        if promised_seconds is None or _is_short(seconds, promised_seconds):
            raise _unsupported(f'"{path}" is damaged after {seconds:.2f} s ({_reason(error)})', _EXPORT) from error
    if promised_seconds is not None and _is_short(seconds, promised_seconds):
        raise _unsupported(f'"{path}" promises {promised_seconds:.2f} s of sound but has {seconds:.2f} s', _EXPORT)


def _check_speakers(path: Path, frames: list[AudioFrame]) -> None:
    """Refuses channels in an order of their own: PyAV frees the memory of such a layout twice, so it is kept here."""
    for frame in frames:
        if not _is_usual(frame.layout.name):
            for each in frames:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(each.layout))
            raise _unsupported(
                f'"{path}" has an unusual order of channels, {frame.layout.name}', "mix it down to mono or stereo"
            )


def _is_usual(layout: str) -> bool:
    """Whether a layout has a name of its own ("stereo", "5.1(side)"), or its channels stand in the common order."""
    listed = re.fullmatch(r"\d+ channels \((.*)\)", layout)
    if listed is None:
        return not layout.startswith("ambisonic")
    channels = listed[1].split("+")
    return channels == [channel for channel in _SPEAKERS if channel in channels]


def _is_short(seconds: float, promised_seconds: float) -> bool:
    return seconds < promised_seconds - LENGTH_TOLERANCE_S


def _chunks(
    path: Path, first: AudioFrame, rest: Iterator[AudioFrame], max_seconds: float
) -> Iterator[NDArray[np.float32]]:
    num_samples = 0
    for frame in _chain(first, rest):
        if (frame.sample_rate, frame.layout.nb_channels) != (first.sample_rate, first.layout.nb_channels):
            raise _unsupported(
                f'"{path}" changes from {first.sample_rate} Hz, {first.layout.nb_channels} channels '
                f"to {frame.sample_rate} Hz, {frame.layout.nb_channels} channels",
                _EXPORT,
            )
        num_samples += frame.samples
        if num_samples > max_seconds * first.sample_rate:
            raise _unsupported(f'"{path}" is longer than {max_seconds:g} s, which is the limit', "give a shorter part")
        yield _to_float(path, frame)


def _cut(chunks: Iterator[NDArray[np.float32]], num_samples: int) -> Iterator[NDArray[np.float32]]:
    for chunk in chunks:
        yield chunk[:num_samples]
        num_samples = max(0, num_samples - len(chunk))


def _chain(first: AudioFrame, rest: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
    yield first
    yield from rest


def _to_float(path: Path, frame: AudioFrame) -> NDArray[np.float32]:
    """Returns the samples of a frame as float32 [samples, channels] within [-1, 1]: an integer's lowest value is -1."""
    try:
        raw = frame.to_ndarray()
    except ValueError as error:
        raise _unsupported(f'"{path}" has samples of kind {frame.format.name}', _EXPORT) from error
    by_sample = raw.T if frame.format.is_planar else raw.reshape(-1, frame.layout.nb_channels)
    if by_sample.dtype.kind in "iu":
        # Powers of two: both steps are exact. Only 8-bit sound is unsigned.
        half_range: np.float32 = np.float32(2.0 ** (8 * by_sample.itemsize - 1))
        zero = half_range if by_sample.dtype.kind == "u" else np.float32(0)
        return (by_sample.astype(np.float32) - zero) / half_range
    if not np.isfinite(by_sample).all():
        raise _unsupported(f'"{path}" has samples that are not numbers', _EXPORT)
    return np.clip(by_sample, -1, 1).astype(np.float32)


def _wav_seconds(file: BinaryIO) -> float | None:
    """Returns the length that a WAV header promises, and rewinds; None for other files and for streamed WAVs.

    libav shortens the promise to what the file has, so that it cannot tell a cut file from a whole one.
    """
    try:
        if file.read(4) != b"RIFF" or file.read(8)[4:] != b"WAVE":
            return None
        return _data_seconds(file)
    finally:
        file.seek(0)


def _data_seconds(file: BinaryIO) -> float | None:
    bytes_per_second = 0
    while len(header := file.read(8)) == 8:
        kind, num_bytes = struct.unpack("<4sI", header)
        if kind == b"data":
            # Programs that write to a pipe do not know the length and put 0 or the largest number there.
            is_known = bytes_per_second > 0 and 0 < num_bytes < 0x7FFF_0000
            return num_bytes / bytes_per_second if is_known else None
        start = file.tell()
        if kind == b"fmt ":
            fields = file.read(12)
            bytes_per_second = struct.unpack_from("<I", fields, 8)[0] if len(fields) == 12 else 0
        file.seek(start + num_bytes + num_bytes % 2)
    return None


def _reason(error: Exception) -> str:
    """Returns what went wrong without the number and the file, which libav knows by another name."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


_KINDS = "give WAV, MP3, M4A, FLAC or OGG"
_EXPORT = "export it again as WAV or FLAC"


def _unsupported(message: str, remedy: str) -> UnsupportedMediaError:
    return UnsupportedMediaError(message, remedy=remedy, param="audio")
