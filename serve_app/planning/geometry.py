"""Sizes, clips, blocks and tokens: the arithmetic of a video, in the standard library alone.

Facts of the model: 25 frames per second; one latent frame stands for 4 video frames and 8x8 pixels;
one block is 3 latent frames = 12 video frames; a token is a 2x2 patch of one latent frame.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from serve_app.errors import InvalidRequestError, shown

FPS = 25
LATENT_FRAMES_PER_BLOCK = 3
FRAMES_PER_LATENT = 4
FRAMES_PER_BLOCK = LATENT_FRAMES_PER_BLOCK * FRAMES_PER_LATENT
STARTUP_FRAMES = 3
"""The start-up of the streaming decoder takes these frames from block 0, which brings 9, not 12."""
PIXELS_PER_LATENT = 8
PIXELS_PER_TOKEN_SIDE = 16
SIZE_MULTIPLE = 64
MIN_AREA = SIZE_MULTIPLE * SIZE_MULTIPLE
MAX_AREA = 1280 * 720
MAX_INFER_FRAMES = 480

Fit = Literal["area", "exact"]


@dataclass(frozen=True)
class Size:
    """A picture in pixels, width first as users write it ("704*384")."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InvalidRequestError(
                f"size {self} has a side below 1 pixel",
                remedy="write it as WIDTH*HEIGHT, for example 704*384",
                param="size",
            )

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def area(self) -> int:
        return self.width * self.height

    @property
    def latent_width(self) -> int:
        return self.width // PIXELS_PER_LATENT

    @property
    def latent_height(self) -> int:
        return self.height // PIXELS_PER_LATENT

    @property
    def tokens_per_frame(self) -> int:
        """S: tokens of one latent frame, width * height / 256."""
        return (self.width // PIXELS_PER_TOKEN_SIDE) * (self.height // PIXELS_PER_TOKEN_SIDE)

    @property
    def cond_tokens(self) -> int:
        """Tokens of the sink: reference, newest motion frame, 2x-packed pair, 4x-packed 16 frames (2.5 S)."""
        packed_2x = (self.latent_height // 4) * (self.latent_width // 4)
        packed_4x = 4 * (self.latent_height // 8) * (self.latent_width // 8)
        return 2 * self.tokens_per_frame + packed_2x + packed_4x


def parse_size(text: str) -> Size:
    """Reads "704*384" or "704x384" (width first).

    Raises InvalidRequestError for anything else, and for an area outside 64*64 .. 1280*720.
    """
    match = re.fullmatch(r"\s*(\d{1,5})\s*[*xX]\s*(\d{1,5})\s*", text)
    if match is None:
        raise InvalidRequestError(
            f"size {shown(text)} is not WIDTH*HEIGHT", remedy="write two numbers, for example 704*384", param="size"
        )
    size = Size(int(match[1]), int(match[2]))
    if not MIN_AREA <= size.area <= MAX_AREA:
        raise InvalidRequestError(
            f"size {size} has an area of {size.area} pixels; allowed are {MIN_AREA} (64x64) to {MAX_AREA} (1280x720)",
            remedy="choose a size in between, for example 704*384",
            param="size",
        )
    return size


def effective_size(image: Size, cap: Size, fit: Fit) -> Size:
    """Returns the size of the video for a portrait of size `image` and the requested size `cap`.

    "area": the portrait's aspect ratio under the area of `cap`. "exact": `cap` itself, multiples of 64 only.
    """
    return exact_size(cap) if fit == "exact" else area_size(image, cap.area)


def exact_size(cap: Size) -> Size:
    """Returns `cap`; raises InvalidRequestError, naming the nearest valid size, unless it is on the 64 grid."""
    nearest = _nearest_on_grid(cap)
    if nearest != cap:
        raise InvalidRequestError(
            f"size {cap} is not a multiple of {SIZE_MULTIPLE} on both sides, which fit=exact requires",
            remedy=f"use {nearest}, the nearest that is, or fit=area",
            param="size",
        )
    return cap


def area_size(image: Size, max_area: int) -> Size:
    """Returns the largest size near the image's aspect ratio: sides multiples of 64, area <= max_area.

    The reference's search (golden `sizing`): 100 scales from the largest down; each scaled side is
    rounded up to the 64 grid, and the first pair under the cap wins. Images are never enlarged
    beyond that rounding.
    """
    largest, smallest = _scale_range(image, max_area)
    for step in range(100):
        scale = largest - (largest - smallest) * step / 100
        width = _round_up(int(image.width * scale))
        height = _round_up(int(image.height * scale))
        if width * height <= max_area and min(width, height) > 0:
            return Size(width, height)
    return _aspect_only_size(image, max_area)


def _scale_range(image: Size, max_area: int) -> tuple[float, float]:
    if image.area <= max_area:
        return 1.0, 0.1
    padding = SIZE_MULTIPLE - 1
    b = padding * (image.width + image.height)
    c = padding**2 - max_area
    smallest = (-b + math.sqrt(b**2 - 2 * image.area * c)) / (2 * image.area)
    return math.sqrt(max_area / image.area), smallest


def _aspect_only_size(image: Size, max_area: int) -> Size:
    """Falls back on the aspect ratio alone, for shapes so long that no scale of the search fits."""
    aspect = image.width / image.height
    width = max(SIZE_MULTIPLE, int(math.sqrt(max_area * aspect)) // SIZE_MULTIPLE * SIZE_MULTIPLE)
    height = max(SIZE_MULTIPLE, int(math.sqrt(max_area / aspect)) // SIZE_MULTIPLE * SIZE_MULTIPLE)
    longest = max_area // SIZE_MULTIPLE // SIZE_MULTIPLE * SIZE_MULTIPLE
    return Size(min(width, longest), min(height, longest))


def _round_up(side: int) -> int:
    return -(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE


def _nearest_on_grid(cap: Size) -> Size:
    """Returns the size of the 64 grid that differs least from `cap`, among those of an allowed area."""
    pairs = itertools.product(_grid_neighbours(cap.width), _grid_neighbours(cap.height))
    allowed = [Size(width, height) for width, height in pairs if width * height <= MAX_AREA]
    return min(allowed, key=lambda size: abs(size.width - cap.width) + abs(size.height - cap.height))


def _grid_neighbours(side: int) -> tuple[int, int]:
    below = max(1, min(side, MAX_AREA // SIZE_MULTIPLE) // SIZE_MULTIPLE) * SIZE_MULTIPLE
    return below, _round_up(side)


def check_infer_frames(infer_frames: int) -> None:
    """Raises InvalidRequestError unless the KV window is a multiple of 12 video frames, 12 .. 480."""
    if infer_frames % FRAMES_PER_BLOCK == 0 and FRAMES_PER_BLOCK <= infer_frames <= MAX_INFER_FRAMES:
        return
    inside = min(max(infer_frames, FRAMES_PER_BLOCK), MAX_INFER_FRAMES)
    below = inside // FRAMES_PER_BLOCK * FRAMES_PER_BLOCK
    nearest = f"{below}" if below == inside else f"{below} or {below + FRAMES_PER_BLOCK}"
    raise InvalidRequestError(
        f"infer_frames {shown(infer_frames)} is not a multiple of {FRAMES_PER_BLOCK} "
        f"between {FRAMES_PER_BLOCK} and {MAX_INFER_FRAMES}",
        remedy=f"use {nearest} (48 is the default)",
        param="infer_frames",
    )


@dataclass(frozen=True)
class Timeline:
    """Where clips, blocks and frames of one video begin and end.

    `num_frames` counts frames of the file; `infer_frames` is the clip length and KV window in video frames.
    """

    num_frames: int
    infer_frames: int

    @property
    def num_blocks(self) -> int:
        return -(-self.num_frames // FRAMES_PER_BLOCK)

    @property
    def blocks_per_clip(self) -> int:
        return self.infer_frames // FRAMES_PER_BLOCK

    @property
    def window_latent_frames(self) -> int:
        """Latent frames that a KV cache holds."""
        return self.infer_frames // FRAMES_PER_LATENT

    @property
    def seconds(self) -> float:
        return self.num_frames / FPS

    def block_frames(self, index: int) -> range:
        """Returns the frames of the file that block `index` stands for; the last block may be cut."""
        start = index * FRAMES_PER_BLOCK
        return range(start, min(start + FRAMES_PER_BLOCK, self.num_frames))

    def blocks(self) -> Iterator[BlockPosition]:
        """Yields the position of every block in order."""
        return (self.position(index) for index in range(self.num_blocks))

    def position(self, index: int) -> BlockPosition:
        clip, in_clip = divmod(index, self.blocks_per_clip)
        return BlockPosition(index=index, clip=clip, in_clip=in_clip)


@dataclass(frozen=True)
class BlockPosition:
    """One block: its clip, and its place in the clip, which is also the KV slot that it overwrites."""

    index: int
    clip: int
    in_clip: int

    @property
    def first_latent_frame(self) -> int:
        return self.index * LATENT_FRAMES_PER_BLOCK


def plan_timeline(
    *, audio_samples: int, sample_rate: int, num_clip: int | None, infer_frames: int, max_seconds: float | None = None
) -> Timeline:
    """Returns round(25 * the least of audio, num_clip * infer_frames / 25 and max_seconds) frames, 1 or more."""
    limits = [round(Fraction(FPS * audio_samples, sample_rate))]
    if num_clip is not None:
        limits.append(num_clip * infer_frames)
    if max_seconds is not None:
        limits.append(round(FPS * Fraction(max_seconds)))
    return Timeline(num_frames=max(1, min(limits)), infer_frames=infer_frames)
