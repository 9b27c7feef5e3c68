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
    max_sample_rate: int = Field(default=192_000, gt=0)
    """Decoding takes time for every sample, and some files hold hours of silence in little space."""
    max_channels: int = Field(default=7, ge=1, le=7)
    """Of a frame with 8 channels or more in planes, PyAV reads memory that is not the frame's."""


class VideoEncoding(Frozen):
    """How frames and sound are coded; nothing is left to the machine, so that the same run gives the same bytes."""

    crf: int = Field(default=18, ge=0, le=51)
    preset: str = "veryfast"
    threads: int = Field(default=2, ge=1)
    audio_bit_rate: int = Field(default=128_000, gt=0)


class GangLimits(Frozen):
    """How long the ranks that share a video may take, in seconds."""

    placement_s: float = Field(default=60, gt=0)
    """To find a place on the cluster."""
    start_s: float = Field(default=1200, gt=0)
    """To start, meet and load; also how long a task waits for ranks that are started anew."""
    heartbeat_s: float = Field(default=10, gt=0)
    """Without a heartbeat a rank counts as frozen."""
    first_block_s: float = Field(default=600, gt=0)
    """Without a sign of progress, until the second block: conditioning, and whatever first calls take."""
    least_progress_s: float = Field(default=30, gt=0)
    progress_factor: float = Field(default=10, ge=1)
    """Later: this many times the predicted time of a block, and at least `least_progress_s`."""
    drain_s: float = Field(default=10, gt=0)
    """To come to the next block border after a cancel; then the ranks are killed."""
    meet_s: float = Field(default=300, gt=0)
    """For the ranks to meet."""
    first_message_s: float = Field(default=900, gt=0)
    """Between ranks, until the first block of a video."""
    message_s: float = Field(default=300, gt=0)
    """Between ranks, for every later message and every collective."""


class AppConfig(Frozen):
    """The whole configuration; a part is handed to whoever needs it."""

    image: ImageLimits = ImageLimits()
    audio: AudioLimits = AudioLimits()
    encoding: VideoEncoding = VideoEncoding()
    gang: GangLimits = GangLimits()
    threads: int | None = Field(default_factory=lambda: _threads(os.environ.get("OMP_NUM_THREADS")), ge=1)
    """Compute threads of each rank on a CPU; None: the cores are shared out. Other numbers give other last digits."""
    cuda_visible_devices: str | None = Field(default_factory=lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
    """Which GPUs of this machine may be used, as CUDA's own variable says it; None: all."""
    cache_dir: Path = Field(default_factory=lambda: _cache_dir(os.environ.get("XDG_CACHE_HOME")))


def _threads(omp_num_threads: str | None) -> int | None:
    return int(omp_num_threads) if omp_num_threads and omp_num_threads.isdecimal() else None


def _cache_dir(xdg_cache_home: str | None) -> Path:
    base = Path(xdg_cache_home) if xdg_cache_home else Path.home() / ".cache"
    return base / "live-avatar-serve"
