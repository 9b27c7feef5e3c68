"""Our networks at full size, on the meta device, hold exactly the published names and shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Wav2Vec2Config

from serve_app.model.config import DiTConfig, ModelSizes, TextEncoderConfig, VAEConfig
from serve_app.model.dit import CausalDiT
from serve_app.model.lora import adapted_linears
from serve_app.model.speech_encoder import SpeechEncoder, speech_config, to_transformers_names
from serve_app.model.text_encoder import TextEncoder, published_name
from serve_app.model.vae import VideoVAE

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifest"


def manifest(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((MANIFESTS / f"{name}.json").read_text())
    return values


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.fixture(autouse=True)
def _on_meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


def test_the_transformer() -> None:
    published = manifest("s2v_14b_dit")
    dit = CausalDiT(DiTConfig.from_json(published["config"]))
    assert shapes(dit) == published["shapes"]
    assert sum(parameter.numel() for parameter in dit.parameters()) == published["parameters"]
    assert dit.config == ModelSizes().dit


def test_the_vae() -> None:
    published = manifest("wan21_vae")
    assert shapes(VideoVAE(VAEConfig.from_json(published["config"]))) == published["shapes"]
    assert VAEConfig.from_json(published["config"]) == ModelSizes().vae


def test_the_text_encoder() -> None:
    published = manifest("umt5_xxl_encoder")
    found = shapes(TextEncoder(TextEncoderConfig.from_json(published["config"])))
    assert {published_name(name): shape for name, shape in found.items()} == published["shapes"]
    assert TextEncoderConfig.from_json(published["config"]) == ModelSizes().text


@pytest.mark.parametrize("halves", ["parametrizations.weight.original{}", "weight_{}"], ids=["new", "old"])
def test_the_speech_encoder(halves: str) -> None:
    published = manifest("wav2vec2_large_xlsr53_english")
    new = "parametrizations.weight.original{}"
    spelled = {
        name.replace(new.format(0), halves.format("g" if "_" in halves else 0)).replace(
            new.format(1), halves.format("v" if "_" in halves else 1)
        ): torch.empty(shape)
        for name, shape in published["shapes"].items()
    }
    renamed = {name: list(tensor.shape) for name, tensor in to_transformers_names(spelled.items())}
    assert shapes(SpeechEncoder(Wav2Vec2Config(**published["config"]))) == renamed
    assert shapes(SpeechEncoder(speech_config(ModelSizes().speech))) == renamed


def test_the_lora() -> None:
    published = manifest("lora")
    targets = adapted_linears(CausalDiT(ModelSizes().dit))
    assert len(targets) == published["num_target_linears"]
    assert set(published["modules_examples"]) <= set(targets)
    rank = published["rank"]
    parameters = sum(rank * (linear.in_features + linear.out_features) for linear in targets.values())
    assert parameters == published["adapter_parameters"]
