"""The VAE against the reference: encoding, decoding, and both in chunks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.model.config import VAEConfig
from serve_app.model.vae import Stream, VideoVAE
from tests.parity.golden import Golden, cases, largest_error, load, load_weights

ENCODE_TOLERANCE = 1.2e-6
DECODE_TOLERANCE = 1.1e-4
STREAM_TOLERANCE = 8e-5

CASES = [
    (path, case["case"]) for path in cases("vae") if "cases" in (spec := load(path)).spec for case in spec.spec["cases"]
]


@pytest.fixture(scope="module", name="vae_of")
def _vae_of() -> Callable[[Golden], VideoVAE]:
    def build(golden: Golden) -> VideoVAE:
        statistics = {"latents_mean": golden.spec["latents_mean"], "latents_std": golden.spec["latents_std"]}
        vae = VideoVAE(VAEConfig.from_json(golden.spec["config"] | statistics)).eval()
        vae.load_state_dict(load_weights(golden))
        return vae.tuned()

    return build


@pytest.mark.parametrize(("path", "name"), CASES, ids=[f"{path.stem}-{name}" for path, name in CASES])
def test_case_matches_the_reference(
    path: Path, name: str, vae_of: Callable[[Golden], VideoVAE], record_property: Any
) -> None:
    golden = load(path)
    case = next(case for case in golden.spec["cases"] if case["case"] == name)
    with torch.inference_mode():
        error, tolerance = _error(vae_of(golden), golden.tensors, case)
    record_property(f"vae {name}", error)
    assert error <= tolerance, f"{name}: {error:.2e} > {tolerance:.1e}"


def _error(vae: VideoVAE, tensors: dict[str, Tensor], case: dict[str, Any]) -> tuple[float, float]:
    name = case["case"]
    if "pixel_chunks" in case:
        return _stream_encode_error(vae, tensors, case), ENCODE_TOLERANCE
    if "chunks" in case:
        return _stream_decode_error(vae, tensors, case), STREAM_TOLERANCE
    if "latent_shape" in case:
        return largest_error(vae.encode(tensors[f"{name}.video"]), tensors[f"{name}.latent"]), ENCODE_TOLERANCE
    video = vae.decode_unclamped(tensors[f"{name}.latent"], Stream())
    return largest_error(video, tensors[f"{name}.video_unclamped"]), DECODE_TOLERANCE


def _stream_encode_error(vae: VideoVAE, tensors: dict[str, Tensor], case: dict[str, Any]) -> float:
    stream, name = Stream(), case["case"]
    parts = tensors[f"{name}.video"].split(case["pixel_chunks"], dim=1)
    return max(
        largest_error(vae.encode(part, stream), tensors[f"{name}.latent_chunk{index}"])
        for index, part in enumerate(parts)
    )


def _stream_decode_error(vae: VideoVAE, tensors: dict[str, Tensor], case: dict[str, Any]) -> float:
    stream, name = Stream(), case["case"]
    parts = tensors[f"{name}.latent"].split(case["chunks"], dim=1)
    return max(
        largest_error(vae.decode(part, stream), tensors[f"{name}.chunk{index}"]) for index, part in enumerate(parts)
    )
