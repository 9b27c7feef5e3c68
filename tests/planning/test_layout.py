"""Layouts: what may be written, what is refused with what works instead, and which rank does what."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import InvalidRequestError
from serve_app.planning.layout import (
    HARDWARE_PRESETS,
    NUM_HEADS,
    OFFLOADS,
    ParallelLayout,
    Role,
    check_layout,
    from_flags,
    share,
)


@st.composite
def layouts(draw: st.DrawFn) -> ParallelLayout:
    stages, ulysses, vae = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(0, 4))
    weight_shards = draw(st.sampled_from([1, ulysses])) if stages == 1 else 1
    offload = draw(st.sampled_from(OFFLOADS)) if weight_shards == 1 else "none"
    return ParallelLayout(stages=stages, ulysses=ulysses, vae=vae, weight_shards=weight_shards, offload=offload)


@pytest.mark.parametrize(
    ("text", "layout", "canonical"),
    [
        ("single", ParallelLayout(), "single"),
        ("stages=1", ParallelLayout(), "single"),
        (" vae=1 , stages=4 ", ParallelLayout(stages=4, vae=1), "stages=4,vae=1"),
        ("offload=layers", ParallelLayout(offload="layers"), "offload=layers"),
        ("weight_shards=4,ulysses=4,vae=0", ParallelLayout(ulysses=4, weight_shards=4), "ulysses=4,weight_shards=4"),
        ("offload=none,stages=2,ulysses=2", ParallelLayout(stages=2, ulysses=2), "stages=2,ulysses=2"),
        ("5x80", ParallelLayout(stages=4, vae=1), "stages=4,vae=1"),
        ("4x24", ParallelLayout(ulysses=4, weight_shards=4), "ulysses=4,weight_shards=4"),
    ],
)
def test_a_layout_is_read_and_written_canonically(text: str, layout: ParallelLayout, canonical: str) -> None:
    assert ParallelLayout.parse(text) == layout
    assert str(layout) == canonical


@given(layouts())
def test_a_written_layout_reads_back(layout: ParallelLayout) -> None:
    assert ParallelLayout.parse(str(layout)) == layout


GRAMMAR = (
    "write single, or some of stages=,ulysses=,vae=,weight_shards=,offload= with commas, for example stages=4,vae=1"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"'' is no part of a layout; {GRAMMAR}"),
        ("singel", f"'singel' is no part of a layout (did you mean single?); {GRAMMAR}"),
        ("stages=4,,vae=1", f"'' is no part of a layout; {GRAMMAR}"),
        ("stage=4", f"'stage=4' is no part of a layout (did you mean stages?); {GRAMMAR}"),
        ("single,vae=1", f"'single' is no part of a layout (did you mean single?); {GRAMMAR}"),
        ("stages", f"'stages' is no part of a layout; {GRAMMAR}"),
        ("stages=4,stages=4", "layout 'stages=4,stages=4' sets stages twice; write stages= once"),
        ("stages=four", "stages='four' is not a whole number; write for example stages=1"),
        ("stages=-1", "stages='-1' is not a whole number; write for example stages=1"),
        ("stages=0", "stages=0 is not a whole number from 1 to 16; use stages=1"),
        ("stages=17", "stages=17 is not a whole number from 1 to 16; use stages=16"),
        ("ulysses=65", "ulysses=65 is not a whole number from 1 to 64; use ulysses=64"),
        ("vae=9", "vae=9 is not a whole number from 0 to 8; use vae=8"),
        ("offload=all", "offload='all' is neither none nor layers; use offload=layers, or none"),
        (
            "weight_shards=4",
            "weight_shards=4 with ulysses=1: weights are whole (1) or sharded over the ulysses axis; "
            "use weight_shards=1, or ulysses=4,weight_shards=4",
        ),
        (
            "ulysses=4,weight_shards=2",
            "weight_shards=2 with ulysses=4: weights are whole (1) or sharded over the ulysses axis; "
            "use weight_shards=1 or weight_shards=4",
        ),
        (
            "stages=2,ulysses=4,weight_shards=4",
            "weight_shards=4 with stages=2: sharded weights are gathered layer by layer, on one stage only; "
            "use stages=1, or weight_shards=1 with stages=2",
        ),
        (
            "ulysses=2,weight_shards=2,offload=layers",
            "weight_shards=2 with offload=layers: a layer comes from the other ranks or from the host, not from both; "
            "use weight_shards=1 with offload=layers, or offload=none",
        ),
    ],
)
def test_a_bad_layout_is_refused_with_value_rule_and_remedy(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        ParallelLayout.parse(text)
    assert str(refused.value) == message
    assert refused.value.param == "layout"


@given(st.text(max_size=40))
@settings(max_examples=300)
def test_any_text_is_a_layout_or_is_refused(text: str) -> None:
    with suppress(InvalidRequestError):
        layout = ParallelLayout.parse(text)
        assert ParallelLayout.parse(str(layout)) == layout


@pytest.mark.parametrize("value", [True, 2.0, "2", None])
def test_a_count_that_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"^stages=.* is not a whole number"):
        ParallelLayout(stages=value)  # type: ignore[arg-type]


def test_ulysses_must_divide_the_heads() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_layout(ParallelLayout(ulysses=3), num_heads=40, sample_steps=4)
    assert str(refused.value) == (
        "ulysses=3 does not divide the model's 40 attention heads; use ulysses=1, 2, 4, 5, 8, 10, 20 or 40"
    )


@pytest.mark.parametrize(
    ("stages", "sample_steps", "said"),
    [
        (1, 4, ()),
        (4, 4, ()),
        (3, 4, ()),
        (4, 3, ("stage 0 owns no step: 4 stages share 3 steps, so latents pass through",)),
        (4, 2, ("stages 0, 2 own no step: 4 stages share 2 steps, so latents pass through",)),
    ],
)
def test_a_stage_without_a_step_is_allowed_and_told(stages: int, sample_steps: int, said: tuple[str, ...]) -> None:
    assert check_layout(ParallelLayout(stages=stages), num_heads=40, sample_steps=sample_steps) == said


@given(total=st.integers(0, 100), parts=st.integers(1, 20))
def test_shares_cover_all_in_order_and_differ_by_at_most_one(total: int, parts: int) -> None:
    shares = [share(total, parts, index) for index in range(parts)]
    assert [item for part in shares for item in part] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(layout=layouts(), sample_steps=st.integers(1, 10))
def test_every_step_belongs_to_one_stage(layout: ParallelLayout, sample_steps: int) -> None:
    owned = [step for stage in range(layout.stages) for step in layout.steps_of(stage, sample_steps)]
    assert owned == list(range(sample_steps))


@given(layouts())
def test_stage_ranks_come_first_then_vae_ranks(layout: ParallelLayout) -> None:
    places = layout.places()
    assert [place.rank for place in places] == list(range(layout.world_size))
    assert [place.role for place in places] == [Role.STAGE] * layout.num_stage_ranks + [Role.VAE] * layout.vae
    for place in places[: layout.num_stage_ranks]:
        assert layout.stage_rank(stage=place.stage, ulysses=place.ulysses) == place.rank
        assert place.stage < layout.stages
        assert place.ulysses < layout.ulysses
    assert [place.vae for place in places[layout.num_stage_ranks :]] == list(range(layout.vae))


@given(layouts())
def test_vae_ranks_decode_or_else_the_ranks_of_the_last_stage(layout: ParallelLayout) -> None:
    decoding = [layout.place(rank) for rank in layout.decoding_ranks]
    if layout.vae:
        assert Counter(place.role for place in decoding) == {Role.VAE: layout.vae}
    else:
        assert [(place.stage, place.ulysses) for place in decoding] == [
            (layout.stages - 1, index) for index in range(layout.ulysses)
        ]


@pytest.mark.parametrize(
    ("rank", "said"), [(0, "stage 0, ulysses 0"), (3, "stage 1, ulysses 1"), (4, "vae 0"), (5, "vae 1")]
)
def test_a_rank_says_where_it_stands(rank: int, said: str) -> None:
    assert str(ParallelLayout(stages=2, ulysses=2, vae=2).place(rank)) == said


def test_every_hardware_preset_uses_all_its_cards_and_has_the_name_of_its_machine() -> None:
    assert {name: str(preset.layout) for name, preset in HARDWARE_PRESETS.items()} == {
        "1x80": "single",
        "1x24": "offload=layers",
        "1x48": "offload=layers",
        "5x80": "stages=4,vae=1",
        "4x24": "ulysses=4,weight_shards=4",
        "8x80": "stages=4,ulysses=2",
    }
    for preset in HARDWARE_PRESETS.values():
        assert preset.layout.world_size == preset.num_gpus
        assert check_layout(preset.layout, num_heads=NUM_HEADS, sample_steps=4) == ()


@pytest.mark.parametrize(
    ("flags", "layout"),
    [
        ({}, "single"),
        ({"offload_model": True}, "offload=layers"),
        ({"num_gpus_dit": 4, "enable_vae_parallel": True}, "stages=4,vae=1"),
        ({"num_gpus_dit": 4, "ulysses_size": 4}, "ulysses=4"),
        ({"num_gpus_dit": 8, "ulysses_size": 2}, "stages=4,ulysses=2"),
        ({"num_gpus_dit": 3, "enable_vae_parallel": True}, "stages=3,vae=1"),
    ],
)
def test_the_users_flags_give_a_layout(flags: dict[str, int], layout: str) -> None:
    assert str(from_flags(**flags)) == layout  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"num_gpus_dit": 3, "ulysses_size": 3, "enable_vae_parallel": True},
            "num_gpus_dit=3 with ulysses_size=3: ulysses_size does not divide the model's 40 attention heads; "
            "use num_gpus_dit=3, ulysses_size=1, enable_vae_parallel=true; "
            "or num_gpus_dit=4, ulysses_size=1, 2 or 4, enable_vae_parallel=false",
        ),
        (
            {"num_gpus_dit": 4, "ulysses_size": 5},
            "num_gpus_dit=4 with ulysses_size=5: 4 GPUs are no whole number of stages of 5; "
            "use num_gpus_dit=4, ulysses_size=1, 2 or 4, enable_vae_parallel=false; "
            "or num_gpus_dit=3, ulysses_size=1, enable_vae_parallel=true",
        ),
        (
            {"num_gpus_dit": 1, "ulysses_size": 2},
            "num_gpus_dit=1 with ulysses_size=2: 1 GPU is no whole number of stages of 2; "
            "use num_gpus_dit=1, ulysses_size=1, enable_vae_parallel=false",
        ),
        ({"num_gpus_dit": 0}, "num_gpus_dit=0 is not a whole number from 1 to 1024; use num_gpus_dit=1"),
        ({"num_gpus_dit": 17}, "stages=17 is not a whole number from 1 to 16; use stages=16"),
    ],
)
def test_flags_that_cannot_work_are_refused_with_flags_that_do(flags: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        from_flags(**flags)  # type: ignore[arg-type]
    assert str(refused.value) == message
    assert refused.value.param == "layout"


@given(dit=st.integers(1, 16), ulysses=st.integers(1, 40), vae=st.booleans(), offload=st.booleans())
@settings(max_examples=300)
def test_flags_give_a_layout_of_as_many_gpus_or_an_offer(dit: int, ulysses: int, *, vae: bool, offload: bool) -> None:
    works = NUM_HEADS % ulysses == 0 and dit % ulysses == 0
    refusal = pytest.raises(InvalidRequestError, match="; use num_gpus_dit=")
    with nullcontext() if works else refusal:
        layout = from_flags(num_gpus_dit=dit, ulysses_size=ulysses, enable_vae_parallel=vae, offload_model=offload)
        assert layout.world_size == dit + vae
