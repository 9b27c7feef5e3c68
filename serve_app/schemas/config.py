"""AppConfig: every setting, read once, passed down in parts."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """A schema that cannot be changed and refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageLimits(Frozen):
    """What a portrait may be; checked before its pixels are decoded."""

    max_bytes: int = Field(default=50 * 2**20, gt=0)
    max_pixels: int = Field(default=50_000_000, gt=0)
    max_side: int = Field(default=16_384, gt=0)
    min_side: int = Field(default=32, gt=0)
    max_aspect: float = Field(default=16.0, ge=1)


class AudioLimits(Frozen):
    """What a voice may be."""

    max_bytes: int = Field(default=2**30, gt=0)
    min_seconds: float = Field(default=0.2, gt=0)
    max_seconds: float = Field(default=4 * 3600.0, gt=0)
    max_channels: int = Field(default=7, ge=1, le=7)
    """Of a frame with 8 channels or more in planes, PyAV reads memory that is not the frame's."""


class VideoEncoding(Frozen):
    """How frames and sound are coded; nothing is left to the machine, so that the same run gives the same bytes."""

    crf: int = Field(default=18, ge=0, le=51)
    preset: str = "veryfast"
    threads: int = Field(default=2, ge=1)
    audio_bit_rate: int = Field(default=128_000, gt=0)


class AppConfig(Frozen):
    """The whole configuration; a part is handed to whoever needs it."""

    image: ImageLimits = ImageLimits()
    audio: AudioLimits = AudioLimits()
    encoding: VideoEncoding = VideoEncoding()
    threads: int | None = Field(default_factory=lambda: _threads(os.environ.get("OMP_NUM_THREADS")), ge=1)
    """Compute threads of each rank on a CPU; None: the cores are shared out. Other numbers give other last digits."""
    cache_dir: Path = Field(default_factory=lambda: _cache_dir(os.environ.get("XDG_CACHE_HOME")))


def _threads(omp_num_threads: str | None) -> int | None:
    return int(omp_num_threads) if omp_num_threads and omp_num_threads.isdecimal() else None


def _cache_dir(xdg_cache_home: str | None) -> Path:
    base = Path(xdg_cache_home) if xdg_cache_home else Path.home() / ".cache"
    return base / "live-avatar-serve"
