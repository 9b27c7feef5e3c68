"""Constants and files: what the published configurations say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_app.errors import CheckpointError
from serve_app.model.config import LATENTS_MEAN, LATENTS_STD, DiTConfig, VAEConfig

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_latent_statistics_are_the_published_ones() -> None:
    published = json.loads((GOLDEN / "vae" / "vae.json").read_text())
    assert pytest.approx(published["latents_mean"]) == LATENTS_MEAN
    assert pytest.approx(published["latents_std"]) == LATENTS_STD


def test_lists_become_tuples_and_strange_fields_are_left_out() -> None:
    config = DiTConfig.from_json({"dim": 8, "audio_inject_layers": [0, 2], "_class_name": "WanModel_S2V"})
    assert config.audio_inject_layers == (0, 2)


def test_a_vae_with_attention_at_other_scales_is_refused() -> None:
    with pytest.raises(CheckpointError, match="scales"):
        VAEConfig.from_json({"attn_scales": [0.5]})
