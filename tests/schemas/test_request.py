"""From what is given to a spec: who wins over whom, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import InvalidRequestError
from serve_app.planning.geometry import Size
from serve_app.schemas.presets import PRESETS
from serve_app.schemas.render import RenderSpec
from serve_app.schemas.request import REQUEST_FIELDS, complete

INPUTS: dict[str, Any] = {"image": "me.png", "audio": "voice.wav", "prompt": "A person talks."}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(list(PRESETS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def test_without_a_preset_the_spec_has_its_defaults() -> None:
    assert complete(INPUTS, defaults={}) == RenderSpec.from_request(**INPUTS)


def test_what_is_given_wins_over_the_preset_and_that_over_the_defaults() -> None:
    defaults = {"size": "128*128", "sample_steps": 2, "seed": 7}
    spec = complete({**INPUTS, "preset": "fast_preview", "sample_steps": 4, "num_clip": 3}, defaults=defaults)
    assert (spec.sample_steps, spec.num_clip) == (4, 3)
    assert (spec.size, spec.infer_frames) == (Size(384, 256), 36)
    assert spec.seed == 7


def test_num_clip_null_lets_the_audio_decide_in_a_preset_too() -> None:
    assert complete({**INPUTS, "preset": "social", "num_clip": None}, defaults={}).num_clip is None


@pytest.mark.parametrize("scale", [0, 0.0, "0"])
def test_no_guidance_may_be_stated(scale: object) -> None:
    assert complete({**INPUTS, "sample_guide_scale": scale}, defaults={}) == complete(INPUTS, defaults={})


@pytest.mark.parametrize("scale", [5, -1.0, 1e-9, float("nan"), "5", None, [], {}])
def test_guidance_is_refused_because_it_has_no_effect(scale: object) -> None:
    with pytest.raises(InvalidRequestError, match="only 0 is allowed; guidance has no effect") as refused:
        complete({**INPUTS, "sample_guide_scale": scale}, defaults={})
    assert refused.value.param == "sample_guide_scale"


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (
            "num_clips",
            "'num_clips' is not a field of a render (did you mean num_clip?); leave it out; fields are image,",
        ),
        ("smile", "'smile' is not a field of a render; leave it out; fields are image, audio, prompt,"),
    ],
)
def test_an_unknown_field_is_refused_with_those_that_exist(field: str, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        complete({**INPUTS, field: 1}, defaults={})
    assert str(refused.value).startswith(said)
    assert all(name in refused.value.remedy for name in REQUEST_FIELDS)


@given(fields=st.dictionaries(st.sampled_from(REQUEST_FIELDS), ANYTHING))
@settings(max_examples=300, deadline=None)
def test_any_values_make_a_spec_or_a_clear_error(fields: dict[str, Any]) -> None:
    try:
        spec = complete({**INPUTS, **fields}, defaults={})
    except InvalidRequestError as error:
        assert error.param in REQUEST_FIELDS  # noqa: PT017
        assert len(str(error)) < 1_000  # noqa: PT017
    else:
        assert RenderSpec.model_validate_json(spec.model_dump_json()) == spec
