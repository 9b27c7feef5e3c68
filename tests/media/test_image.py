"""Portraits: what is read, what is refused, and how they are fitted."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from serve_app.errors import InputNotFoundError, UnsupportedMediaError
from serve_app.media.image import fit_portrait, load_portrait
from serve_app.planning.geometry import Fit, Size
from serve_app.schemas.config import ImageLimits
from tests.media.conftest import png_chunk, raw_png

LIMITS = ImageLimits()
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


def save(path: Path, image: Image.Image, kind: str = "PNG", **options: object) -> Path:
    image.save(path, format=kind, **options)  # type: ignore[arg-type]
    return path


def flat(mode: str, color: object, size: tuple[int, int] = (40, 48)) -> Image.Image:
    return Image.new(mode, size, color)  # type: ignore[arg-type]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", FORMATS)
def test_reads_every_kind_by_its_content_under_any_name(tmp_path: Path, kind: str) -> None:
    rgb = load_portrait(save(tmp_path / "portrait.txt", flat("RGB", (200, 100, 50)), kind), limits=LIMITS)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (48, 40, 3)
    assert np.abs(rgb.astype(int) - (200, 100, 50)).max() <= 4


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (flat("RGBA", (0, 0, 0, 0)), (255, 255, 255)),
        (flat("RGBA", (255, 0, 0, 128)), (255, 127, 127)),
        (flat("LA", (0, 128)), (127, 127, 127)),
        (flat("L", 77), (77, 77, 77)),
        (flat("1", 1), (255, 255, 255)),
        (flat("P", 0), (0, 0, 0)),
        (flat("I;16", 65_535), (255, 255, 255)),
        (flat("I;16", 257 * 90), (90, 90, 90)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_pixel_mode_becomes_rgb_on_white(
    tmp_path: Path, image: Image.Image, expected: tuple[int, int, int]
) -> None:
    rgb = load_portrait(save(tmp_path / "a.png", image), limits=LIMITS)
    assert np.abs(rgb.astype(int) - expected).max() <= 1


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = flat("P", 3)
    image.putpalette([10, 20, 30] * 256)
    assert load_portrait(save(tmp_path / "a.png", image, transparency=3), limits=LIMITS).min() == 255


def test_a_transparent_rgb_color_is_white(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", flat("RGB", (1, 2, 3)), transparency=(1, 2, 3))
    assert load_portrait(path, limits=LIMITS).min() == 255


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    rgb = load_portrait(save(tmp_path / "a.jpg", flat("CMYK", (0, 255, 255, 0)), "JPEG"), limits=LIMITS)
    assert np.abs(rgb.astype(int) - (255, 0, 0)).max() <= 4


def test_16_bit_colors_are_scaled(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(
        raw_png(40, 40, bits=16, color_type=2, rows=(b"\0" + struct.pack(">HHH", 65_535, 32_896, 0) * 40) * 40)
    )
    assert load_portrait(path, limits=LIMITS)[0, 0].tolist() == [255, 128, 0]


def test_grey_beyond_16_bits_is_refused_with_its_range(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tiff", flat("I", 70_000), "TIFF")
    with pytest.raises(UnsupportedMediaError, match="70000"):
        load_portrait(path, limits=LIMITS)


def test_turns_the_picture_as_its_exif_says(tmp_path: Path) -> None:
    image = noise(40, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = load_portrait(save(tmp_path / "a.png", image, exif=exif), limits=LIMITS)
    assert np.array_equal(rgb, np.rot90(np.asarray(image), k=-1))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_of_several_pictures_the_first_counts(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "a", flat("RGB", "white"), kind, save_all=True, append_images=[flat("RGB", "black")])
    assert load_portrait(path, limits=LIMITS).min() >= 250


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_cut_file_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = save(tmp_path / "a", noise(64, 64), kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnsupportedMediaError) as caught:
        load_portrait(path, limits=LIMITS)
    assert caught.value.param == "image"
    assert caught.value.remedy


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"%PDF-1.7 ...", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(5000)]
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UnsupportedMediaError):
        load_portrait(path, limits=LIMITS)


@pytest.mark.parametrize(
    ("width", "height", "rule"),
    [
        (30_000, 30_000, "has 900000000 pixels; allowed are up to 50000000; scale or crop"),
        (12_000, 12_000, "12000x12000 = 144000000 pixels; allowed are up to 50000000"),
        (16_385, 2_000, "sides up to 16384"),
        (31, 400, "sides of at least 32"),
        (40, 641, "16 times"),
    ],
)
def test_a_size_beyond_the_limits_is_refused_from_the_header_alone(
    tmp_path: Path, width: int, height: int, rule: str
) -> None:
    path = tmp_path / "a.png"
    # There are no pixels behind the header: decoding would fail with another message.
    path.write_bytes(raw_png(width, height, bits=8, color_type=2, rows=b""))
    with pytest.raises(UnsupportedMediaError, match=rule):
        load_portrait(path, limits=LIMITS)


@pytest.mark.parametrize(
    ("kind", "head"),
    [(b"zTXt", b"Title\0\0"), (b"iTXt", b"Title\0\1\0\0\0"), (b"iCCP", b"Profile\0\0")],
    ids=["text", "international text", "color profile"],
)
def test_a_chunk_that_swells_is_refused_unopened(tmp_path: Path, kind: bytes, head: bytes) -> None:
    path = save(tmp_path / "a.png", noise(64, 64))
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + png_chunk(kind, head + zlib.compress(bytes(100_000_000))) + whole[33:])
    tracemalloc.start()
    try:
        with pytest.raises(UnsupportedMediaError, match="not a readable image"):
            load_portrait(path, limits=LIMITS)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20_000_000


def test_a_file_with_too_many_bytes_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = save(tmp_path / "a.bmp", noise(64, 64), "BMP")
    with pytest.raises(UnsupportedMediaError, match=rf"{path.stat().st_size} bytes; allowed are 1000"):
        load_portrait(path, limits=ImageLimits(max_bytes=1000))


def test_what_cannot_be_read_is_not_found(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "absent.png", tmp_path, pipe, Path("a\0b.png")):
        with pytest.raises(InputNotFoundError):
            load_portrait(path, limits=LIMITS)


def white(width: int, height: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 255, dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(32, 300),
    height=st.integers(32, 300),
    columns=st.integers(1, 6),
    rows=st.integers(1, 6),
    fit=st.sampled_from(["area", "exact"]),
)
def test_the_result_always_has_the_size_of_the_video(
    width: int, height: int, columns: int, rows: int, fit: Fit
) -> None:
    size = Size(64 * columns, 64 * rows)
    fitted = fit_portrait(white(width, height), size=size, fit=fit)
    assert fitted.shape == (size.height, size.width, 3)
    assert fitted.dtype == np.uint8
    if fit == "exact":
        assert fitted.min() == 255, "exact has no frame"


def test_area_frames_in_black_what_ends_too_early() -> None:
    fitted = fit_portrait(white(64, 64), size=Size(128, 64), fit="area")
    assert fitted[:, 32:96].min() == 255
    assert fitted[:, :32].max() == 0
    assert fitted[:, 96:].max() == 0


def test_exact_keeps_the_middle_of_the_picture() -> None:
    halves = np.concatenate([white(100, 64), np.zeros((64, 100, 3), dtype=np.uint8)], axis=1)
    fitted = fit_portrait(halves, size=Size(64, 64), fit="exact")
    assert fitted[:, :30].min() == 255
    assert fitted[:, 34:].max() == 0


@pytest.mark.parametrize("fit", ["area", "exact"])
def test_a_picture_of_the_right_size_stays_as_it_is(fit: Fit) -> None:
    rgb = np.asarray(noise(128, 64))
    assert np.array_equal(fit_portrait(rgb, size=Size(128, 64), fit=fit)[:, 32:96], rgb[:, 32:96])
