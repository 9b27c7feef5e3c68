"""RenderSpec: what a user may ask for, and what is said about anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.errors import InvalidRequestError
from serve_app.planning.geometry import Size
from serve_app.schemas.render import MAX_PROMPT_CHARACTERS, RenderSpec

LEAST = {"image": "me.png", "audio": "voice.wav", "prompt": "A person talks."}
SPECS = st.builds(
    RenderSpec,
    image=st.text(min_size=1, max_size=20),
    audio=st.text(min_size=1, max_size=20),
    prompt=st.text(min_size=1, max_size=50),
    size=st.builds(Size, width=st.integers(64, 1280), height=st.integers(64, 720)),
    fit=st.sampled_from(["area", "exact"]),
    num_clip=st.none() | st.integers(1, 100_000),
    infer_frames=st.integers(1, 20).map(lambda blocks: 12 * blocks),
    sample_steps=st.integers(1, 10),
    seed=st.integers(0, 2**63 - 1),
    enable_online_decode=st.booleans(),
    max_seconds=st.none() | st.floats(0.01, 1e5),
)


def test_three_inputs_are_enough_and_the_defaults_are_those_that_users_know() -> None:
    assert RenderSpec.from_request(**LEAST).model_dump() == {
        **LEAST,
        "size": "704x384",
        "fit": "area",
        "num_clip": None,
        "infer_frames": 48,
        "sample_steps": 4,
        "seed": 420,
        "enable_online_decode": True,
        "max_seconds": None,
    }


def test_a_spec_cannot_be_changed() -> None:
    spec = RenderSpec.from_request(**LEAST)
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("size", ["384*256", "384x256", Size(384, 256)])
def test_a_size_is_a_size_inside_and_text_outside(size: str | Size) -> None:
    spec = RenderSpec.from_request(**LEAST, size=size)
    assert spec.size == Size(width=384, height=256)
    assert spec.model_dump()["size"] == "384x256"
    assert json.loads(spec.model_dump_json())["size"] == "384x256"


@given(spec=SPECS)
@settings(deadline=None)
def test_a_spec_survives_json(spec: RenderSpec) -> None:
    assert RenderSpec.model_validate_json(spec.model_dump_json()) == spec
    assert RenderSpec.from_request(**json.loads(spec.model_dump_json())) == spec


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("image", "", "image '': string should have at least 1 character"),
        ("audio", "", "audio '': string should have at least 1 character"),
        ("prompt", "", "prompt '': string should have at least 1 character"),
        ("prompt", 7, "prompt 7: input should be a valid string"),
        ("image", "caf\udce9.png", r"image 'caf\udce9.png' is not UTF-8"),
        ("size", "704", "size '704' is not WIDTH*HEIGHT"),
        ("size", "0*0", "size 0x0 has a side below 1 pixel"),
        ("size", "9999*9999", "size 9999x9999 has an area of 99980001 pixels"),
        ("size", Size(1, 1), "size 1x1 has an area of 1 pixels"),
        ("size", Size(1281, 720), "size 1281x720 has an area of 922320 pixels"),
        ("size", None, "size None: input should be text like 704*384"),
        ("fit", "stretch", "fit 'stretch': input should be 'area' or 'exact'"),
        ("num_clip", 0, "num_clip 0: input should be greater than or equal to 1"),
        ("num_clip", 100_001, "num_clip 100001: input should be less than or equal to 100000"),
        ("num_clip", True, "num_clip True: input should be a valid integer"),
        ("num_clip", 1.5, "num_clip 1.5: input should be a valid integer"),
        ("infer_frames", 32, "infer_frames 32 is not a multiple of 12"),
        ("infer_frames", 0, "infer_frames 0 is not a multiple of 12"),
        ("infer_frames", "many", "infer_frames 'many': input should be a valid integer"),
        ("sample_steps", 0, "sample_steps 0: input should be greater than or equal to 1"),
        ("sample_steps", 11, "sample_steps 11: input should be less than or equal to 10"),
        ("sample_steps", False, "sample_steps False: input should be a valid integer"),
        ("seed", -1, "seed -1: input should be greater than or equal to 0"),
        ("seed", 2**63, f"seed {2**63}: input should be less than {2**63}"),
        ("enable_online_decode", "perhaps", "enable_online_decode 'perhaps': input should be a valid boolean"),
    ],
)
def test_a_bad_value_is_refused_naming_field_value_rule_and_remedy(field: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        RenderSpec.from_request(**{**LEAST, field: value})
    assert refused.value.message.startswith(said)
    assert refused.value.param == field
    assert refused.value.remedy
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("field", LEAST)
def test_a_missing_input_is_named_and_the_others_are_not_told(field: str) -> None:
    others = {name: value for name, value in LEAST.items() if name != field}
    with pytest.raises(InvalidRequestError) as refused:
        RenderSpec.from_request(**others)
    assert str(refused.value) == f"{field} is missing; give {field}"
    assert refused.value.param == field


def test_an_unknown_field_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InvalidRequestError, match="'guide_scale' is not a field of a render; leave it out") as refused:
        RenderSpec.from_request(**LEAST, guide_scale=5.0)
    assert refused.value.param == "guide_scale"
    assert all(field in refused.value.remedy for field in RenderSpec.model_fields)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("prompt", "word " * MAX_PROMPT_CHARACTERS, f"at most {MAX_PROMPT_CHARACTERS} characters"),
        ("size", "x" * 5_000, "WIDTH*HEIGHT"),
        ("size", ["704*384"] * 5_000, "text like 704*384"),
        ("num_clip", "9" * 5_000, "exceeded maximum size"),
        ("infer_frames", 10**4_000, "multiple of 12"),
        ("seed", 10**5_000, "of type int: input should be less than"),
    ],
    ids=["prompt", "size", "no size", "num_clip", "infer_frames", "seed"],
)
def test_an_endless_value_is_shortened_in_the_message(field: str, value: object, rule: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        RenderSpec.from_request(**{**LEAST, field: value})
    assert len(str(refused.value)) < 250
    assert rule in str(refused.value)
