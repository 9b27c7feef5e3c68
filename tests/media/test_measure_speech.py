"""What is told of a voice without keeping it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import UnsupportedMediaError
from serve_app.media.audio import measure_speech, read_speech
from serve_app.schemas.config import AudioLimits

LIMITS = AudioLimits()
WriteWav = Callable[..., Path]


def test_the_same_is_told_as_of_a_voice_that_is_read(write_wav: WriteWav) -> None:
    path = write_wav(np.clip(1.4 * np.sin(np.arange(30_000) / 9), -1, 1), 22_050)
    read, measured = (asdict(tell(path, limits=LIMITS)) for tell in (read_speech, measure_speech))
    assert len(measured.pop("samples")) == 0
    assert len(read.pop("samples")) > 20_000
    assert measured == read


def test_what_is_refused_when_read_is_refused_when_measured(write_wav: WriteWav) -> None:
    with pytest.raises(UnsupportedMediaError, match=r"at least 0\.2 s"):
        measure_speech(write_wav(np.zeros(100), 16_000), limits=LIMITS)


def test_memory_does_not_grow_with_the_length(write_wav: WriteWav) -> None:
    path = write_wav(np.zeros(16_000 * 300), 16_000)  # 19 MB as the model hears it
    tracemalloc.start()
    try:
        measure_speech(path, limits=LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_sample_rate_that_no_recording_has_is_refused(write_wav: WriteWav) -> None:
    with pytest.raises(UnsupportedMediaError, match="has 200000 samples per second; allowed are up to 192000"):
        measure_speech(write_wav(np.zeros(100_000), 200_000), limits=LIMITS)
