"""Lips and voice: what is drawn for a moment and what sounds in it stay together through the whole path."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.rendering.pipeline import render
from serve_app.schemas.config import AppConfig
from serve_app.schemas.render import RenderSpec
from tests.media.conftest import WriteWav
from tests.rendering.conftest import a_spec
from tests.rendering.fakes import BRIGHT, DARK, DrawnSource, ListSink

ONE_FRAME_S = 0.040


def rendered(spec: RenderSpec, *, source: DrawnSource) -> bytes:
    sink = ListSink()
    render(
        spec,
        source=source,
        sink=nullcontext(sink),
        config=AppConfig(),
        on_progress=lambda _: None,
        is_cancelled=lambda: False,
    )
    return sink.video


def clicks(at_frames: frozenset[int], *, num_frames: int, sample_rate: int, channels: int) -> NDArray[np.float32]:
    """Returns silence [n, channels] with a click of 5 ms at the start of each of the frames."""
    samples = np.zeros((num_frames * sample_rate // 25, channels), dtype=np.float32)
    for frame in at_frames:
        start = frame * sample_rate // 25
        samples[start : start + sample_rate // 200] = 0.8
    return samples


def flash_times(mp4: bytes) -> list[float]:
    with av.open(io.BytesIO(mp4)) as container:
        frames = [(frame.time, frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
    return [time for time, level in frames if time is not None and level > (DARK + BRIGHT) / 2]


def click_times(mp4: bytes) -> list[float]:
    """Returns when each click begins, in the file's own time."""
    with av.open(io.BytesIO(mp4)) as container:
        frames = [(frame.time, frame.sample_rate, frame.to_ndarray()) for frame in container.decode(audio=0)]
    loud = [time + np.flatnonzero(np.abs(sound).max(axis=0) > 0.3) / rate for time, rate, sound in frames]
    moments = np.concatenate(loud)
    starts: list[float] = moments[np.diff(moments, prepend=-1.0) > 0.1].tolist()
    return starts


@pytest.mark.parametrize(("sample_rate", "channels"), [(16_000, 1), (22_050, 1), (44_100, 2), (48_000, 2)])
@pytest.mark.parametrize(
    "events",
    [{5, 40, 77}, {11, 23, 99}, {12, 24, 84}, {4, 60, 95}],
    ids=["inside blocks", "last in a block", "first in a block", "both ends"],
)
def test_a_flash_and_its_click_stay_together(
    portrait: Path, write_wav: WriteWav, events: set[int], sample_rate: int, channels: int
) -> None:
    moments = frozenset(events)
    sound = clicks(moments, num_frames=100, sample_rate=sample_rate, channels=channels)
    video = rendered(
        a_spec(portrait, write_wav(sound, sample_rate), infer_frames=24), source=DrawnSource(flashes=moments)
    )
    expected = [frame / 25 for frame in sorted(moments)]
    assert flash_times(video) == pytest.approx(expected, abs=1e-6)
    assert click_times(video) == pytest.approx(expected, abs=ONE_FRAME_S / 4)


def test_what_the_engine_draws_first_is_seen_from_the_start(portrait: Path, voice: Path) -> None:
    video = rendered(a_spec(portrait, voice), source=DrawnSource(flashes=frozenset({3})))
    assert flash_times(video) == pytest.approx([0.0, 0.04, 0.08, 0.12])
