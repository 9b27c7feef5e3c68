"""Presets: the values that users know, and what is said of them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from serve_app.errors import InvalidRequestError
from serve_app.planning.geometry import FPS, Size
from serve_app.schemas.presets import PRESETS, Preset, find_preset
from serve_app.schemas.render import RenderSpec
from serve_app.schemas.request import complete

INPUTS = {"image": "me.png", "audio": "voice.wav", "prompt": "A person talks."}
OTHER_STEPS = "sample_steps is 3, the model was distilled for 4: pictures will differ"
SHORT_CLIP = "infer_frames is 36, the default is 48: the model looks back 1.44 s instead of 1.92 s"


@pytest.mark.parametrize(
    ("name", "size", "num_clip", "infer_frames", "sample_steps", "seconds"),
    [
        ("fast_preview", Size(384, 256), 20, 36, 3, 28.8),
        ("social", Size(688, 368), 100, 48, 3, 192),
        ("high_fidelity", Size(704, 384), 50, 48, 4, 96),
        ("long_video", Size(688, 368), 1000, 48, 3, 1920),
    ],
)
def test_the_values_are_those_that_users_know(
    name: str, size: Size, num_clip: int, infer_frames: int, sample_steps: int, seconds: float
) -> None:
    spec = complete({**INPUTS, "preset": name}, defaults={})
    assert (spec.size, spec.num_clip, spec.infer_frames) == (size, num_clip, infer_frames)
    assert (spec.sample_steps, spec.enable_online_decode, spec.fit) == (sample_steps, True, "area")
    assert num_clip * infer_frames / FPS == seconds


@pytest.mark.parametrize(
    ("name", "differences"),
    [
        ("fast_preview", (OTHER_STEPS, SHORT_CLIP)),
        ("social", (OTHER_STEPS,)),
        ("high_fidelity", ()),
        ("long_video", (OTHER_STEPS,)),
    ],
)
def test_what_differs_from_the_model_is_said_as_data(name: str, differences: tuple[str, ...]) -> None:
    assert PRESETS[name].differences == differences
    assert PRESETS[name].model_dump()["differences"] == differences


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_sets_fields_of_a_spec_alone_and_is_described(preset: Preset) -> None:
    assert preset.settings.keys() < RenderSpec.model_fields.keys()
    assert preset.description


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PRESETS["social"].num_clip = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["social"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "high_fidelty",
            "preset 'high_fidelty' does not exist (did you mean high_fidelity?); use one of fast_preview, ",
        ),
        ("", "preset '' does not exist; use one of"),
        (None, "preset None does not exist; use one of"),
        (["social"], "preset ['social'] does not exist; use one of"),
    ],
)
def test_an_unknown_preset_is_refused_with_those_that_exist(name: object, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        find_preset(name)
    assert str(refused.value).startswith(said)
    assert all(preset in refused.value.remedy for preset in PRESETS)
    assert refused.value.param == "preset"
