"""From PCM to audio tokens against the reference: resampling, hidden states, frame picking, causal encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2Config

from serve_app.media.audio import to_model_rate
from serve_app.model.audio_encoder import CausalAudioEncoder
from serve_app.model.checkpoint import fill
from serve_app.model.config import DiTConfig
from serve_app.model.speech_encoder import (
    SpeechEncoder,
    SpeechFeatures,
    feature_index,
    normalise,
    resample_states,
    to_transformers_names,
)
from tests.parity.golden import CPU_FLOAT32, GOLDEN_DIR, Golden, largest_error, load

RESAMPLE_TOLERANCE = 1e-6
INTERPOLATION_TOLERANCE = 1e-5
SPEECH_TOLERANCE = 7e-5
TOKEN_TOLERANCE = 2e-5

SPECS = {path: json.loads(path.read_text()) for path in sorted((GOLDEN_DIR / "audio").glob("*.json"))}


def _numbered(key: str) -> list[tuple[Path, dict[str, Any]]]:
    """The cases of all files whose cases bear `key`; never empty."""
    found = [(p, case) for p, spec in SPECS.items() for case in spec.get("cases", []) if key in case]
    assert found, f"no case with {key} in {GOLDEN_DIR / 'audio'}"
    return found


def _name(value: Any) -> str:
    return value.stem if isinstance(value, Path) else str(value["case"])


@pytest.mark.parametrize(("path", "case"), _numbered("tokens_per_frame"), ids=_name)
def test_audio_tokens_match_the_reference(path: Path, case: dict[str, Any], record_property: Any) -> None:
    golden, number = load(path), case["case"]
    config = golden.spec["config"]
    encoder = CausalAudioEncoder(
        DiTConfig(
            dim=config["out_dim"],
            audio_dim=config["in_dim"],
            num_audio_token=config["num_token"],
            num_audio_states=config["num_layers"],
        )
    )
    encoder.load_state_dict(golden.weights())
    with torch.inference_mode():
        tokens, overall = encoder(golden.tensors[f"c{number}.in"])
    errors = (
        largest_error(tokens, golden.tensors[f"c{number}.tokens"]),
        largest_error(overall[:, :, None], golden.tensors[f"c{number}.global"]),
    )
    record_property("tokens", max(errors))
    assert max(errors) <= TOKEN_TOLERANCE


@pytest.mark.parametrize(("path", "case"), _numbered("input_fps"), ids=_name)
def test_time_interpolation_matches_the_reference(path: Path, case: dict[str, Any], record_property: Any) -> None:
    tensors, name = load(path).tensors, case["case"]
    error = largest_error(resample_states(tensors[f"{name}.in"], case["frames_out"]), tensors[f"{name}.out"])
    record_property("interpolation", error)
    assert error <= INTERPOLATION_TOLERANCE


def test_frames_are_picked_as_in_the_reference() -> None:
    tables = [spec["rows"] for spec in SPECS.values() if "rows" in spec]
    assert tables
    # m > 0 rows join neighbouring features; the model takes single ones.
    for row in (row for rows in tables for row in rows if row["m"] == 0):
        frames = range(row["out_shape"][0])
        indices = [feature_index(frame, row["fps"]) for frame in frames]
        picked = [index if index < row["audio_frames"] else -1 for index in indices]
        assert picked == np.ravel(row["source_index"]).tolist(), row


def _speech_golden(path: Path) -> tuple[Golden, dict[str, torch.Tensor]]:
    spec = SPECS[path]
    weights = load_file(path.parent / spec["weights"].split(" ")[0])
    return Golden(path, spec, load_file(path.with_name(f"{path.stem}_cases.safetensors"))), weights


@pytest.mark.parametrize(("path", "case"), _numbered("hidden_frames"), ids=_name)
def test_speech_features_match_the_reference(path: Path, case: dict[str, Any], record_property: Any) -> None:
    golden, weights = _speech_golden(path)
    encoder = SpeechEncoder(Wav2Vec2Config(**golden.spec["config"])).eval()
    fill(encoder, to_transformers_names(weights.items()), CPU_FLOAT32, source=path.name)
    name = f"c{case['case']}"
    speech = golden.tensors[f"{name}.pcm_s16"].float() / 32768
    with torch.inference_mode():
        states = encoder(normalise(speech))
        features = SpeechFeatures(encoder, speech)
        at_30_fps = features.frames(range(features.num_features), fps=30)[0].transpose(1, 2)
        first_block = features.frames(range(12))
    selected = states if f"{name}.hidden_states" in golden.tensors else states[case["hidden_sel_layers"]]
    stored = golden.tensors.get(f"{name}.hidden_states", golden.tensors.get(f"{name}.hidden_sel"))
    assert stored is not None
    errors = {
        "hidden states": largest_error(selected, stored),
        "30 fps": largest_error(at_30_fps, golden.tensors[f"{name}.feat_30fps"]),
        "embedding": largest_error(first_block, golden.tensors[f"{name}.audio_emb_first12"]),
    }
    for kind, error in errors.items():
        record_property(kind, error)
        assert error <= SPEECH_TOLERANCE, kind


RESAMPLES = [(path, row) for path, spec in SPECS.items() for row in spec.get("resample", [])]


def test_there_are_resampling_cases() -> None:
    assert RESAMPLES


@pytest.mark.parametrize(("path", "case"), RESAMPLES, ids=_name)
def test_resampling_matches_the_reference(path: Path, case: dict[str, Any], record_property: Any) -> None:
    tensors = load_file(path.with_name("resample.safetensors"))
    pcm = tensors[f"{case['case']}.pcm_s16"].numpy().astype(np.float32) / 32768
    speech = torch.from_numpy(to_model_rate(iter((pcm.mean(axis=1),)), sample_rate=case["sample_rate"]))
    error = largest_error(speech, tensors[f"{case['case']}.out16k"])
    record_property("resampling", error)
    assert error <= RESAMPLE_TOLERANCE
