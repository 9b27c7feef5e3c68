"""What is sent: encoded once per kind of video, and no more kinds kept than that."""

from __future__ import annotations

import io
import wave
from dataclasses import replace

import pytest

from load_tests.arrivals import Arrival
from load_tests.bodies import Bodies, voice

ARRIVAL = Arrival(0.0, "standard", "64x64", 1)


def test_videos_of_a_kind_share_a_body() -> None:
    bodies = Bodies(None)
    first, same, other = (bodies.of(one) for one in (ARRIVAL, replace(ARRIVAL, at_s=1), replace(ARRIVAL, num_clip=2)))
    assert first is same
    assert first is not other


def test_memory_is_bounded_however_many_kinds_there_are() -> None:
    bodies = Bodies(None)
    for number in range(200):
        bodies.of(replace(ARRIVAL, deadline_s=1.0 + number))
    assert len(bodies._kept) == 64


@pytest.mark.parametrize("seconds", [0.5, 1.92, 19.2])
def test_a_voice_lasts_as_long_as_it_should(seconds: float) -> None:
    with wave.open(io.BytesIO(voice(seconds))) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(seconds)
