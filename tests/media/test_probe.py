"""Quality warnings: what is warned of, and what is not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from serve_app.media.probe import portrait_warnings, prompt_warnings, quality_warnings, speech_warnings
from serve_app.planning.geometry import Size

GOOD_PROMPT = "a woman speaks in a bright office"


@dataclass(frozen=True)
class Voice:
    sample_rate: int = 48_000
    peak: float = 0.5
    rms: float = 0.1
    clipped_share: float = 0.0


def test_good_inputs_bring_no_warning() -> None:
    assert quality_warnings(portrait=Size(512, 512), speech=Voice(), prompt=GOOD_PROMPT) == ()


def test_every_reason_is_told_in_order() -> None:
    voice = Voice(sample_rate=8_000, rms=0.0, clipped_share=0.5)
    found = quality_warnings(portrait=Size(511, 900), speech=voice, prompt="hello")
    codes = ["small_portrait", "low_sample_rate", "silent_audio", "clipped_audio", "short_prompt"]
    assert [warning.code for warning in found] == codes


@pytest.mark.parametrize(
    ("voice", "codes"),
    [
        (Voice(sample_rate=16_000), []),
        (Voice(sample_rate=15_999), ["low_sample_rate"]),
        (Voice(peak=0.009), ["silent_audio"]),
        (Voice(rms=0.0009), ["silent_audio"]),
        (Voice(clipped_share=0.001), []),
        (Voice(clipped_share=0.002), ["clipped_audio"]),
    ],
)
def test_warns_of_a_voice_by_its_facts(voice: Voice, codes: list[str]) -> None:
    assert [warning.code for warning in speech_warnings(voice)] == codes


@pytest.mark.parametrize(
    ("prompt", "num_warnings"),
    [("", 1), ("one two three four", 1), ("one two three four five", 0), ("一位女士在办公室里讲话", 0), ("你好", 1)],
)
def test_counts_the_words_of_a_prompt_also_in_chinese(prompt: str, num_warnings: int) -> None:
    assert len(prompt_warnings(prompt)) == num_warnings


def test_a_warning_has_the_value_and_the_rule() -> None:
    (warning,) = portrait_warnings(Size(300, 400))
    assert "300x400" in str(warning)
    assert "512x512" in str(warning)
