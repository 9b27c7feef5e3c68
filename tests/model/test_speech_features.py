"""Speech features: windows of a long speech, silence behind the end, frames in any order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from serve_app.model.checkpoint import Placement
from serve_app.model.full_checkpoint import FullCheckpoint
from serve_app.model.speech_encoder import SAMPLE_RATE, SpeechEncoder, SpeechFeatures


@pytest.fixture(scope="module", name="encoder")
def _encoder(small_checkpoint: Path) -> SpeechEncoder:
    return FullCheckpoint(small_checkpoint).speech_encoder().load(Placement(torch.device("cpu"), torch.float32))


def a_speech(seconds: float) -> torch.Tensor:
    return torch.rand(int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0)) - 0.5


class ShortWindows(SpeechFeatures):
    """The same rules at a size that a test can afford."""

    WHOLE_FRAMES = 4 * 50
    CORE_FRAMES = 3 * 50
    TAIL_FRAMES = 50
    CONTEXT_FRAMES = 2 * 50


@torch.inference_mode()
def test_silence_follows_the_end(encoder: SpeechEncoder) -> None:
    features = SpeechFeatures(encoder, a_speech(1.0))
    last_heard = features.frames(range(18, 30))
    assert last_heard[..., 0].abs().sum() > 0
    assert torch.equal(last_heard[..., 7:], torch.zeros_like(last_heard[..., 7:]))
    assert torch.equal(features.frames(range(500, 512)), torch.zeros_like(last_heard))


@torch.inference_mode()
def test_windows_hear_nearly_what_the_whole_speech_hears(encoder: SpeechEncoder) -> None:
    speech = a_speech(11.0)
    whole, windowed = SpeechFeatures(encoder, speech), ShortWindows(encoder, speech)
    one = torch.cat([whole.frames(range(start, start + 12)) for start in range(0, 264, 12)], dim=-1)
    other = torch.cat([windowed.frames(range(start, start + 12)) for start in range(0, 264, 12)], dim=-1)
    similarity = torch.nn.functional.cosine_similarity(one, other, dim=2)
    assert similarity.min() > 0.9
    assert not torch.equal(one, other)


@torch.inference_mode()
def test_a_blocks_features_depend_on_its_place_alone(encoder: SpeechEncoder) -> None:
    speech = a_speech(11.0)
    blocks = [range(start, start + 12) for start in range(0, 264, 12)]
    forwards = ShortWindows(encoder, speech)
    in_order = [forwards.frames(block) for block in blocks]
    backwards = ShortWindows(encoder, speech)
    reverse = [backwards.frames(block) for block in reversed(blocks)][::-1]
    assert all(torch.equal(one, other) for one, other in zip(in_order, reverse, strict=True))


def test_too_short_a_speech_is_refused(encoder: SpeechEncoder) -> None:
    with pytest.raises(ValueError, match="100 samples"):
        SpeechFeatures(encoder, torch.zeros(100))
