"""Sizes, clips and blocks: the arithmetic that every other part trusts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import InvalidRequestError
from serve_app.planning.geometry import (
    FPS,
    FRAMES_PER_BLOCK,
    MAX_AREA,
    MAX_INFER_FRAMES,
    MIN_AREA,
    SIZE_MULTIPLE,
    BlockPosition,
    Size,
    Timeline,
    area_size,
    check_infer_frames,
    effective_size,
    exact_size,
    parse_size,
    plan_timeline,
)

SIDES = st.integers(1, 20_000)
IMAGES = st.builds(Size, width=SIDES, height=SIDES)
CAPS = st.integers(MIN_AREA, MAX_AREA)


def test_a_size_is_written_width_first() -> None:
    assert str(Size(width=704, height=384)) == "704x384"


@pytest.mark.parametrize(
    ("size", "tokens", "cond_tokens"),
    [(Size(704, 384), 1056, 2640), (Size(384, 256), 384, 960), (Size(128, 128), 64, 160), (Size(64, 64), 16, 40)],
)
def test_a_size_counts_latents_and_tokens(size: Size, tokens: int, cond_tokens: int) -> None:
    assert size.area == size.width * size.height
    assert (size.latent_width, size.latent_height) == (size.width / 8, size.height / 8)
    assert size.tokens_per_frame == tokens
    assert size.cond_tokens == cond_tokens


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("704*384", Size(704, 384)),
        ("384x704", Size(384, 704)),
        ("1280X720", Size(1280, 720)),
        (" 64 * 64 ", Size(64, 64)),
        ("100*101", Size(100, 101)),
        ("14400*64", Size(14_400, 64)),
    ],
)
def test_a_size_is_read_as_users_write_it(text: str, size: Size) -> None:
    assert parse_size(text) == size


@given(st.builds(Size, width=st.integers(64, 1280), height=st.integers(64, 720)))
@settings(deadline=None)
def test_a_written_size_reads_back(size: Size) -> None:
    assert parse_size(str(size)) == size


NOT_A_SIZE = "is not WIDTH*HEIGHT; write two numbers, for example 704*384"
AREA_RULE = "allowed are 4096 (64x64) to 921600 (1280x720); choose a size in between, for example 704*384"


@pytest.mark.parametrize(
    ("text", "value", "rule_and_remedy"),
    [
        ("704", "size '704'", NOT_A_SIZE),
        ("", "size ''", NOT_A_SIZE),
        ("704*", "size '704*'", NOT_A_SIZE),
        ("-704*384", "size '-704*384'", NOT_A_SIZE),
        ("704.0*384", "size '704.0*384'", NOT_A_SIZE),
        ("704*384*3", "size '704*384*3'", NOT_A_SIZE),
        ("100000*1", "size '100000*1'", NOT_A_SIZE),
        ("0*0", "size 0x0", "has a side below 1 pixel; write it as WIDTH*HEIGHT, for example 704*384"),
        ("0*384", "size 0x384", "has a side below 1 pixel; write it as WIDTH*HEIGHT, for example 704*384"),
        ("63*65", "size 63x65 has an area of 4095 pixels", AREA_RULE),
        ("1281*720", "size 1281x720 has an area of 922320 pixels", AREA_RULE),
        ("99999*99999", "size 99999x99999 has an area of 9999800001 pixels", AREA_RULE),
    ],
)
def test_a_bad_size_is_refused_with_value_rule_and_remedy(text: str, value: str, rule_and_remedy: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_size(text)
    assert str(refused.value).startswith(value)
    assert str(refused.value).endswith(rule_and_remedy)
    assert refused.value.param == "size"


@pytest.mark.parametrize(
    ("image", "cap", "size"),
    [
        (Size(768, 768), Size(704, 384), Size(512, 512)),
        (Size(1000, 500), Size(704, 384), Size(704, 384)),
        (Size(500, 1000), Size(704, 384), Size(384, 704)),
        (Size(100, 100), Size(704, 384), Size(128, 128)),
        (Size(4000, 3000), Size(128, 128), Size(128, 128)),
        (Size(16_384, 1024), Size(64, 64), Size(64, 64)),
    ],
)
def test_by_area_the_portrait_decides_the_aspect_ratio(image: Size, cap: Size, size: Size) -> None:
    assert effective_size(image, cap, "area") == size


@given(image=IMAGES)
@settings(deadline=None)
def test_exactly_means_that_the_portrait_has_no_say(image: Size) -> None:
    assert effective_size(image, Size(704, 384), "exact") == Size(704, 384)


@given(image=IMAGES, max_area=CAPS)
@settings(max_examples=500, deadline=None)
def test_every_portrait_gets_a_size_on_the_grid_under_the_cap(image: Size, max_area: int) -> None:
    size = area_size(image, max_area)
    assert size.width % SIZE_MULTIPLE == size.height % SIZE_MULTIPLE == 0
    assert min(size.width, size.height) >= SIZE_MULTIPLE
    assert size.area <= max_area


@given(image=IMAGES, max_area=CAPS)
@settings(deadline=None)
def test_no_portrait_is_enlarged_beyond_the_next_grid_line(image: Size, max_area: int) -> None:
    size = area_size(image, max_area)
    assert size.width < image.width + SIZE_MULTIPLE
    assert size.height < image.height + SIZE_MULTIPLE


@given(side=st.integers(64, 1280), max_area=CAPS)
@settings(deadline=None)
def test_a_square_portrait_gives_a_square_video(side: int, max_area: int) -> None:
    size = area_size(Size(side, side), max_area)
    assert size.width == size.height


@given(image=IMAGES, max_area=CAPS)
@settings(deadline=None)
def test_a_turned_portrait_gives_the_turned_size(image: Size, max_area: int) -> None:
    size = area_size(image, max_area)
    assert area_size(Size(image.height, image.width), max_area) == Size(size.height, size.width)


@pytest.mark.parametrize("size", [Size(64, 64), Size(704, 384), Size(1280, 704), Size(14_400, 64)])
def test_an_exact_size_on_the_grid_is_taken(size: Size) -> None:
    assert exact_size(size) == size


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        (Size(720, 400), Size(704, 384)),
        (Size(704, 385), Size(704, 384)),
        (Size(1280, 720), Size(1280, 704)),
        (Size(95, 65), Size(64, 64)),
        (Size(97, 65), Size(128, 64)),
        (Size(1200, 768), Size(1152, 768)),  # 1216x768 is nearer, but larger than allowed
        (Size(92_160, 10), Size(14_400, 64)),
        (Size(32, 128), Size(64, 128)),
    ],
)
def test_an_exact_size_off_the_grid_is_refused_naming_the_nearest(size: Size, nearest: Size) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        exact_size(size)
    assert str(refused.value) == (
        f"size {size} is not a multiple of 64 on both sides, which fit=exact requires; "
        f"use {nearest}, the nearest that is, or fit=area"
    )
    assert refused.value.param == "size"


@given(width=st.integers(1, 99_999), data=st.data())
@settings(deadline=None)
def test_the_nearest_exact_size_is_itself_allowed(width: int, data: st.DataObject) -> None:
    highest = MAX_AREA // width
    height = data.draw(st.integers(min(highest, -(-MIN_AREA // width)), highest).filter(lambda side: side > 0))
    size = Size(width, height)
    try:
        exact_size(size)
    except InvalidRequestError as refused:
        nearest = parse_size(refused.remedy.removeprefix("use ").partition(",")[0])
        assert exact_size(nearest) == nearest != size


@pytest.mark.parametrize("infer_frames", [12, 24, 36, 48, MAX_INFER_FRAMES])
def test_a_window_of_whole_blocks_is_taken(infer_frames: int) -> None:
    check_infer_frames(infer_frames)


@pytest.mark.parametrize(
    ("infer_frames", "nearest"),
    [
        (32, "24 or 36"),
        (47, "36 or 48"),
        (11, "12"),
        (0, "12"),
        (-24, "12"),
        (MAX_INFER_FRAMES - 1, f"{MAX_INFER_FRAMES - 12} or {MAX_INFER_FRAMES}"),
        (MAX_INFER_FRAMES + 1, f"{MAX_INFER_FRAMES}"),
        (MAX_INFER_FRAMES + 12, f"{MAX_INFER_FRAMES}"),
        (10**9, f"{MAX_INFER_FRAMES}"),
    ],
)
def test_any_other_window_is_refused_naming_the_nearest(infer_frames: int, nearest: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_infer_frames(infer_frames)
    assert str(refused.value) == (
        f"infer_frames {infer_frames} is not a multiple of 12 between 12 and {MAX_INFER_FRAMES}; "
        f"use {nearest} (48 is the default)"
    )
    assert refused.value.param == "infer_frames"


@pytest.mark.parametrize(
    ("num_frames", "num_blocks", "last_block"),
    [
        (1, 1, range(1)),
        (11, 1, range(11)),
        (12, 1, range(12)),
        (13, 2, range(12, 13)),
        (75, 7, range(72, 75)),
        (96, 8, range(84, 96)),
    ],
)
def test_the_last_block_is_cut_where_the_video_ends(num_frames: int, num_blocks: int, last_block: range) -> None:
    timeline = Timeline(num_frames=num_frames, infer_frames=48)
    assert timeline.num_blocks == num_blocks
    assert timeline.block_frames(num_blocks - 1) == last_block


@given(num_frames=st.integers(1, 5_000), infer_blocks=st.integers(1, MAX_INFER_FRAMES // FRAMES_PER_BLOCK))
@settings(deadline=None)
def test_the_blocks_hold_every_frame_once_and_in_order(num_frames: int, infer_blocks: int) -> None:
    timeline = Timeline(num_frames=num_frames, infer_frames=infer_blocks * FRAMES_PER_BLOCK)
    frames = [frame for block in timeline.blocks() for frame in timeline.block_frames(block.index)]
    assert frames == list(range(num_frames))


def test_blocks_know_their_clip_their_slot_and_their_first_latent_frame() -> None:
    timeline = Timeline(num_frames=60, infer_frames=24)
    assert list(timeline.blocks()) == [
        BlockPosition(index=0, clip=0, in_clip=0),
        BlockPosition(index=1, clip=0, in_clip=1),
        BlockPosition(index=2, clip=1, in_clip=0),
        BlockPosition(index=3, clip=1, in_clip=1),
        BlockPosition(index=4, clip=2, in_clip=0),
    ]
    assert [block.first_latent_frame for block in timeline.blocks()] == [0, 3, 6, 9, 12]


@pytest.mark.parametrize(
    ("infer_frames", "blocks_per_clip", "window_latent_frames"), [(12, 1, 3), (36, 3, 9), (48, 4, 12), (240, 20, 60)]
)
def test_a_clip_is_as_long_as_the_window(infer_frames: int, blocks_per_clip: int, window_latent_frames: int) -> None:
    timeline = Timeline(num_frames=1, infer_frames=infer_frames)
    assert timeline.blocks_per_clip == blocks_per_clip
    assert timeline.window_latent_frames == window_latent_frames


def test_a_video_of_75_frames_lasts_3_seconds() -> None:
    assert Timeline(num_frames=75, infer_frames=48).seconds == 3.0


@pytest.mark.parametrize(
    ("audio_samples", "sample_rate", "num_frames"),
    [
        (16_000, 16_000, 25),
        (960, 16_000, 2),  # 1.5 frames
        (1_600, 16_000, 2),  # 2.5 frames: halves go to the even neighbour
        (1_601, 16_000, 3),
        (2_240, 16_000, 4),  # 3.5 frames
        (44_100 * 3, 44_100, 75),
        (66_150 + 881, 44_100, 38),
        (66_150 + 882, 44_100, 38),  # exactly 38 frames
        (1, 48_000, 1),
        (16_000 * 10_000, 16_000, 250_000),
    ],
)
def test_the_audio_decides_the_length(audio_samples: int, sample_rate: int, num_frames: int) -> None:
    timeline = plan_timeline(audio_samples=audio_samples, sample_rate=sample_rate, num_clip=None, infer_frames=48)
    assert timeline == Timeline(num_frames=num_frames, infer_frames=48)


@pytest.mark.parametrize(
    ("num_clip", "infer_frames", "num_frames"),
    [(1, 48, 48), (1, 12, 12), (2, 36, 72), (3, 48, 100), (10**5, 48, 100)],
)
def test_num_clip_caps_the_length(num_clip: int, infer_frames: int, num_frames: int) -> None:
    timeline = plan_timeline(audio_samples=64_000, sample_rate=16_000, num_clip=num_clip, infer_frames=infer_frames)
    assert timeline.num_frames == num_frames


@pytest.mark.parametrize(
    ("max_seconds", "num_clip", "num_frames"),
    [(1.0, None, 25), (0.5, None, 12), (0.001, None, 1), (9.0, None, 100), (3.0, 1, 48), (1.0, 1, 25)],
)
def test_the_least_of_audio_clips_and_seconds_is_the_length(
    max_seconds: float, num_clip: int | None, num_frames: int
) -> None:
    timeline = plan_timeline(
        audio_samples=64_000, sample_rate=16_000, num_clip=num_clip, infer_frames=48, max_seconds=max_seconds
    )
    assert timeline.num_frames == num_frames


def test_audio_that_fills_its_clips_gets_no_empty_one() -> None:
    timeline = plan_timeline(audio_samples=2 * 48 * 640, sample_rate=16_000, num_clip=None, infer_frames=48)
    assert [block.clip for block in timeline.blocks()] == [0, 0, 0, 0, 1, 1, 1, 1]


@given(
    audio_samples=st.integers(1, 10**9),
    sample_rate=st.integers(8_000, 192_000),
    num_clip=st.none() | st.integers(1, 1000),
    infer_blocks=st.integers(1, 20),
)
@settings(deadline=None)
def test_a_video_is_never_empty_and_ends_with_the_audio_or_the_cap(
    audio_samples: int, sample_rate: int, num_clip: int | None, infer_blocks: int
) -> None:
    infer_frames = infer_blocks * FRAMES_PER_BLOCK
    timeline = plan_timeline(
        audio_samples=audio_samples, sample_rate=sample_rate, num_clip=num_clip, infer_frames=infer_frames
    )
    assert timeline.num_frames >= 1
    assert timeline.num_frames <= max(1, audio_samples * FPS / sample_rate + 0.5)
    is_capped = num_clip is not None and timeline.num_frames == num_clip * infer_frames
    assert is_capped or timeline.num_frames >= audio_samples * FPS / sample_rate - 0.5
