"""The portrait: read from a hostile file, then fitted to the video."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from serve_app.errors import AvatarError, UnsupportedMediaError
from serve_app.media.files import open_input
from serve_app.planning.geometry import Fit, Size
from serve_app.schemas.config import ImageLimits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_16_BIT = 65_535
_SMALLER = "scale or crop the portrait"


def load_portrait(path: Path, *, limits: ImageLimits) -> NDArray[np.uint8]:
    """Reads a portrait as uint8 RGB [height, width, 3], upright, transparent parts on white.

    The kind is known by content, not by name; of an animation the first picture counts. Sizes are checked
    before a pixel is decoded. Raises InputNotFoundError, or UnsupportedMediaError for anything else
    than a whole image within `limits`.
    """
    with open_input(path, max_bytes=limits.max_bytes, param="image") as file, _unreadable(path), _without_warnings():
        image = _open_header(path, file, limits)
        _check_size(path, image, limits)
        upright = ImageOps.exif_transpose(image)
        return np.array(_to_rgb(path, upright), dtype=np.uint8)


def fit_portrait(rgb: NDArray[np.uint8], *, size: Size, fit: Fit) -> NDArray[np.uint8]:
    """Scales and crops `rgb` [H, W, 3] to [size.height, size.width, 3].

    "area" follows the reference (golden `sizing/image_preprocess`): the short side becomes the shorter target
    side, the centre is cut out, and where the picture ends too early it is framed in black. "exact" scales
    until the target is covered and cuts out the centre: never a frame.
    """
    image = Image.fromarray(rgb)
    return _fit_exact(image, size) if fit == "exact" else _fit_area(image, size)


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """Turns whatever a decoder says about a broken file into UnsupportedMediaError."""
    try:
        yield
    except AvatarError:
        raise
    # Pillow's decoders answer hostile bytes with a dozen kinds of exception, struct.error and KeyError among them.
    except Exception as error:
        raise UnsupportedMediaError(
            f'"{path}" is not a readable image ({error})',
            remedy=f"give a whole file of one of these kinds: {', '.join(FORMATS)}",
            param="image",
        ) from error


def _open_header(path: Path, file: BinaryIO, limits: ImageLimits) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:  # beyond Pillow's own limit, which is not ours
        number = re.search(r"\d+", str(error))
        raise UnsupportedMediaError(
            f'"{path}" has {number[0] if number else "too many"} pixels; allowed are up to {limits.max_pixels}',
            remedy=_SMALLER,
            param="image",
        ) from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps Pillow's remarks off standard error: odd tags do no harm, and large pictures are for `limits` to refuse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_size(path: Path, image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    short, long = sorted(image.size)
    rules = (
        (long <= limits.max_side, f"sides up to {limits.max_side}"),
        (width * height <= limits.max_pixels, f"up to {limits.max_pixels} pixels"),
        (short >= limits.min_side, f"sides of at least {limits.min_side}"),
        (long <= limits.max_aspect * short, f"one side up to {limits.max_aspect:g} times the other"),
    )
    for is_kept, rule in rules:
        if not is_kept:
            raise UnsupportedMediaError(
                f'"{path}" is {width}x{height} = {width * height} pixels; allowed are {rule}',
                remedy=_SMALLER,
                param="image",
            )


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_16_to_rgb(path, image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _grey_16_to_rgb(path: Path, image: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits (Pillow's own conversion would cut everything above 255 to white)."""
    grey = np.asarray(image)
    if image.mode == "F" or grey.min() < 0 or grey.max() > MAX_16_BIT:
        raise UnsupportedMediaError(
            f'"{path}" has grey values beyond 16 bits (mode {image.mode}, {grey.min()} to {grey.max()})',
            remedy="save it with 8 or 16 bits per channel",
            param="image",
        )
    scaled = np.rint(grey.astype(np.float32) * (255 / MAX_16_BIT)).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


def _fit_area(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    short = min(size.width, size.height)
    width, height = _short_side_to(image, short)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    rows, columns = _pad_widths(height, size.height), _pad_widths(width, size.width)
    padded = np.pad(pixels, (rows, columns, (0, 0)))
    top = _crop_offset(padded.shape[0], size.height)
    left = _crop_offset(padded.shape[1], size.width)
    return np.ascontiguousarray(padded[top : top + size.height, left : left + size.width])


def _short_side_to(image: Image.Image, short: int) -> tuple[int, int]:
    if image.width <= image.height:
        return short, int(short * image.height / image.width)
    return int(short * image.width / image.height), short


def _pad_widths(side: int, target: int) -> tuple[int, int]:
    missing = max(0, target - side)
    return missing // 2, (missing + 1) // 2


def _crop_offset(side: int, target: int) -> int:
    # Rounds halves to even, as the reference does.
    return round((side - target) / 2)


def _fit_exact(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """Scales only the part that stays: nothing larger than the target is ever made."""
    scale = max(size.width / image.width, size.height / image.height)
    kept_width = min(size.width / scale, image.width)
    kept_height = min(size.height / scale, image.height)
    left, top = (image.width - kept_width) / 2, (image.height - kept_height) / 2
    box = (left, top, left + kept_width, top + kept_height)
    return np.array(image.resize((size.width, size.height), Image.Resampling.BILINEAR, box=box))
