"""Files that media tests read, and ffprobe as the independent judge of what is written."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import wave
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

Probe = Callable[[Path], dict[str, dict[str, str]]]
WriteWav = Callable[..., Path]
EncodeSound = Callable[..., Path]


def raw_png(width: int, height: int, *, bits: int, color_type: int, rows: bytes, level: int = 6) -> bytes:
    """Returns a PNG with any header over any rows, also ones that do not fit together."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows, level)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.fixture
def ffprobe() -> Probe:
    """Returns a function from a file to what ffprobe says: {"video": {...}, "audio": {...}}, all frames counted."""
    program = shutil.which("ffprobe")
    if program is None:
        pytest.fail("ffprobe is not installed; these tests need it (it comes with FFmpeg)")

    def probe(path: Path) -> dict[str, dict[str, str]]:
        command = [program, "-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        answer = json.loads(done.stdout)
        return {"format": answer["format"], **{stream["codec_type"]: stream for stream in answer["streams"]}}

    return probe


@pytest.fixture
def write_wav(tmp_path: Path) -> WriteWav:
    """Returns a function that writes float [n] or [n, channels] within [-1, 1] as a 16-bit WAV."""

    def write(samples: NDArray[np.float32], sample_rate: int, name: str = "voice.wav") -> Path:
        path = tmp_path / name
        by_channel = samples if samples.ndim == 2 else samples[:, None]
        with wave.open(str(path), "wb") as file:
            file.setnchannels(by_channel.shape[1])
            file.setsampwidth(2)
            file.setframerate(sample_rate)
            file.writeframes(np.rint(by_channel * 32767).astype("<i2").tobytes())
        return path

    return write


@pytest.fixture
def encode_sound(tmp_path: Path) -> EncodeSound:
    """Returns a function that encodes float32 [n, channels] with any codec that FFmpeg has."""

    def encode(samples: NDArray[np.float32], sample_rate: int, *, codec: str, name: str, layout: str = "mono") -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=sample_rate, layout=layout, options={"strict": "experimental"})
            # Packed, not in planes: of those PyAV handles less than 8.
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return encode


@pytest.fixture
def tone() -> Callable[[float, int], NDArray[np.float32]]:
    """Returns a function from seconds and rate to a gliding tone [n, 1] of half scale: no two moments sound alike."""

    def make(seconds: float, sample_rate: int) -> NDArray[np.float32]:
        time = np.arange(round(seconds * sample_rate)) / sample_rate
        return (0.5 * np.sin(2 * np.pi * (200 * time + 300 * time**2)))[:, None].astype(np.float32)

    return make
