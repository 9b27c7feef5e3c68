"""The numbers of planning are those of the model: published manifests, configurations, and what units there are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from serve_app.model.config import ModelSizes
from serve_app.model.reference import MOTION_LATENTS
from serve_app.model.speech_encoder import HIDDEN_FPS, SpeechFeatures
from serve_app.model.vae import Stream
from serve_app.planning import workload
from serve_app.planning.cost import call_flops, decode_flops
from serve_app.planning.geometry import Size
from serve_app.planning.network import PUBLISHED
from serve_app.planning.workload import SPEECH_WINDOW_SECONDS, WHOLE_SPEECH_SECONDS, Workload
from tests.planning.full_size import FakeVideo, faked, full_dit, full_vae, latents, tracked

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifest"


def manifest(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((MANIFESTS / f"{name}.json").read_text())
    return values


def shapes(name: str, *prefixes: str) -> int:
    """Returns the parameters of a published network whose names begin so."""
    return sum(math.prod(shape) for key, shape in manifest(name)["shapes"].items() if key.startswith(prefixes or ""))


def test_every_network_has_the_published_parameters() -> None:
    assert PUBLISHED.dit.parameters == shapes("s2v_14b_dit")
    assert PUBLISHED.vae.parameters == shapes("wan21_vae")
    assert PUBLISHED.text.parameters == shapes("umt5_xxl_encoder")
    head = shapes("wav2vec2_large_xlsr53_english", "lm_head.")  # not loaded
    assert PUBLISHED.speech.parameters == shapes("wav2vec2_large_xlsr53_english") - head


def test_the_transformer_is_its_units_and_what_stays() -> None:
    layer, injector, adain = PUBLISHED.dit.units[0], PUBLISHED.dit.units[40], PUBLISHED.dit.units[-1]
    assert layer == shapes("s2v_14b_dit", "blocks.0.")
    assert injector == shapes("s2v_14b_dit", "audio_injector.injector.0.")
    assert adain == shapes("s2v_14b_dit", "audio_injector.injector_adain_layers.0.")
    in_units = shapes("s2v_14b_dit", "blocks.", "audio_injector.")
    assert sum(PUBLISHED.dit.units) == in_units
    assert PUBLISHED.dit.resident_parameters == shapes("s2v_14b_dit") - in_units


def test_widths_are_those_of_the_model() -> None:
    sizes = ModelSizes()
    dit = asdict(sizes.dit)
    assert len(dit.pop("audio_inject_layers")) == PUBLISHED.dit.num_injectors
    assert {name: value for name, value in asdict(PUBLISHED.dit).items() if name != "num_injectors"} == {
        name: value for name, value in dit.items() if name != "eps"
    }
    assert asdict(PUBLISHED.text) == asdict(sizes.text)
    assert asdict(PUBLISHED.vae).items() <= asdict(sizes.vae).items()
    assert PUBLISHED.speech.hidden == sizes.speech["hidden_size"]
    assert PUBLISHED.speech.num_layers == sizes.speech["num_hidden_layers"]
    assert PUBLISHED.speech.intermediate == sizes.speech["intermediate_size"]
    assert list(PUBLISHED.speech.conv_dims) == sizes.speech["conv_dim"]


def test_stretches_of_speech_are_those_of_the_encoder() -> None:
    frames = SpeechFeatures.CORE_FRAMES + SpeechFeatures.TAIL_FRAMES + 2 * SpeechFeatures.CONTEXT_FRAMES
    assert SpeechFeatures.WHOLE_FRAMES / HIDDEN_FPS == WHOLE_SPEECH_SECONDS
    assert frames / HIDDEN_FPS == SPEECH_WINDOW_SECONDS


def test_motion_is_as_long_as_in_the_model() -> None:
    assert workload.MOTION_LATENTS == MOTION_LATENTS


CHECK_TFLOP = [(Size(384, 256), 37.0), (Size(640, 384), 108.8), (Size(704, 384), 123.0), (Size(640, 448), 132.9)]


@pytest.mark.parametrize(("size", "tflop"), CHECK_TFLOP, ids=str)
def test_a_call_is_the_known_arithmetic_less_the_text(size: Size, tflop: float) -> None:
    """The reference makes keys and values of the text at every call; we make them once per video."""
    text = 2.0 * PUBLISHED.dit.num_layers * 2 * PUBLISHED.dit.text_len * PUBLISHED.dit.dim**2
    assert (call_flops(Workload(size), PUBLISHED.dit) + text) / 1e12 == pytest.approx(tflop, abs=0.15)


@pytest.mark.parametrize(("size", "infer_frames"), [(Size(704, 384), 36)], ids=str)
def test_the_arithmetic_of_a_call_is_what_the_network_does(size: Size, infer_frames: int) -> None:
    work = Workload(size, infer_frames)
    with faked():
        dit = full_dit(40, injected=ModelSizes().dit.audio_inject_layers)
        video = FakeVideo.begin(dit, work, tracked(dit))
        before = _flops(video.prepare)
        seen = _flops(lambda: video.call(video.blocks_per_window)) - before
    assert call_flops(work, PUBLISHED.dit) == pytest.approx(seen, rel=0.001)


def test_the_arithmetic_of_decoding_is_what_the_network_does() -> None:
    size = Size(384, 256)
    with faked():
        vae = full_vae()
        stream = Stream()
        vae.decode(latents(size, 3), stream)
        seen = _flops(lambda: vae.decode(latents(size, 3), stream))
    assert decode_flops(PUBLISHED.vae, size) == pytest.approx(seen, rel=0.01)
    assert seen / 12 / size.area == pytest.approx(8.5e6, rel=0.02)


def _flops(work: Any) -> float:
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=attention) as counter:
        work()
    return float(counter.get_total_flops())


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    """The counter knows this of all backends but the CPU's."""
    return sdpa_flop_count(query, key, value)
