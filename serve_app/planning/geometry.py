"""Sizes, clips, blocks and tokens: the arithmetic of a video, in the standard library alone.

Facts of the model: 25 frames per second; one latent frame stands for 4 video frames and 8x8 pixels;
one block is 3 latent frames = 12 video frames; a token is a 2x2 patch of one latent frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from serve_app.errors import InvalidRequestError

FPS = 25
LATENT_FRAMES_PER_BLOCK = 3
FRAMES_PER_LATENT = 4
FRAMES_PER_BLOCK = LATENT_FRAMES_PER_BLOCK * FRAMES_PER_LATENT
PIXELS_PER_LATENT = 8
LATENTS_PER_TOKEN_SIDE = 2
PIXELS_PER_TOKEN_SIDE = PIXELS_PER_LATENT * LATENTS_PER_TOKEN_SIDE
SIZE_MULTIPLE = 64
MAX_AREA = 1280 * 720
MIN_INFER_FRAMES = FRAMES_PER_BLOCK
MAX_INFER_FRAMES = 96
STARTUP_FRAMES = 3
"""Frames that the decoder's start-up takes from the first block: block 0 brings 9 frames, not 12."""


@dataclass(frozen=True)
class Size:
    """A picture size in pixels, width first as users write it ("704*384")."""

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InvalidRequestError(
                f"size {self} has a side below 1",
                remedy="write it as WIDTH*HEIGHT in pixels, for example 704*384",
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
        """S: tokens of one latent frame = width * height / 256."""
        return (self.width // PIXELS_PER_TOKEN_SIDE) * (self.height // PIXELS_PER_TOKEN_SIDE)

    @property
    def cond_tokens(self) -> int:
        """Tokens of the sink: reference, newest motion frame, 2x-packed pair, 4x-packed 16 frames."""
        packed_2x = (self.latent_height // 4) * (self.latent_width // 4)
        packed_4x = 4 * (self.latent_height // 8) * (self.latent_width // 8)
        return 2 * self.tokens_per_frame + packed_2x + packed_4x


def area_size(image: Size, max_area: int) -> Size:
    """Returns the output size of `fit="area"`: the image's aspect, sides multiples of 64, area <= cap.

    The rule of the reference (golden `sizing`): of the scales at which the whole picture fits under
    the cap, walk down from the ceiling of the image's own size until the rounded sides fit.
    """
    raise NotImplementedError
