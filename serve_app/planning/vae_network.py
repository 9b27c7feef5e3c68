"""The VAE as planning sees it: one walk over its layers gives parameters, stream, peaks and arithmetic.

Source: `model.vae` and the published Wan2.1 VAE. Every quantity per element (`* element_bytes` gives bytes), for one
chunk: one latent frame, which is 4 frames, both ways in full swing (not the start of a stream).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

from serve_app.planning.geometry import FRAMES_PER_LATENT, LATENT_FRAMES_PER_BLOCK, Size

_PAST_FRAMES = 2
"""What a causal convolution (temporal kernel 3) remembers of its input."""


@dataclass(frozen=True)
class VAEDims:
    """Widths of the VAE; defaults are the published Wan2.1 VAE. `patch_size` folds pixels into channels."""

    dim: int = 96
    decoder_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    patch_size: int = 1

    @property
    def parameters(self) -> int:
        """All of encoder, decoder and the two 1x1 convolutions between them."""
        between = 2 * self.z_dim * (2 * self.z_dim + 1) + self.z_dim * (self.z_dim + 1)
        layers = (*walk_decoder(self), *walk_encoder(self))
        return between + sum(layer.parameters for layer in layers)


@dataclass(frozen=True)
class Layer:
    """One layer; all but `parameters` count elements, or multiply-adds, per pixel of the full grid and chunk.

    At its worst moment a layer and its callers hold `held`, and `stacked` where its 3x3 convolution pads. `scale` is
    the layer's pixels per pixel of the full grid. With `is_split` several decoding ranks share it by width: then it
    works on a strip with a column more at each side, which takes a copy of `border` (`distributed.vae_parallel`).
    """

    name: str
    parameters: int
    stream: float
    held: float
    multiply_adds: float
    scale: float
    stacked: float = 0.0
    border: float = 0.0
    is_split: bool = False
    is_stream_bordered: bool = True

    def stream_of(self, strip: float, columns: int) -> float:
        """Returns what the layer remembers on a rank that decodes `strip` of `columns` pixels."""
        if not self.is_split or strip == 1.0:
            return self.stream
        return self.stream * strip * (self._border_factor(strip * columns) if self.is_stream_bordered else 1.0)

    def peak_of(self, strip: float, columns: int) -> float:
        """Returns what the layer holds at its worst moment there."""
        if not self.is_split or strip == 1.0:
            return self.held + self.stacked
        return strip * (self.held + (self.stacked + self.border) * self._border_factor(strip * columns))

    def _border_factor(self, columns: float) -> float:
        return 1 + 2 / (columns * math.sqrt(self.scale))


@cache
def walk_decoder(dims: VAEDims) -> tuple[Layer, ...]:
    """Returns the decoder's layers in order, for one latent frame."""
    return tuple(_decoder(dims))


@cache
def walk_encoder(dims: VAEDims) -> tuple[Layer, ...]:
    """Returns the encoder's layers in order, for one latent frame's 4 frames."""
    return tuple(_encoder(dims))


def _decoder(dims: VAEDims) -> Iterator[Layer]:
    widths = [dims.decoder_dim * factor for factor in (dims.dim_mult[-1], *reversed(dims.dim_mult))]
    levels = len(dims.dim_mult)
    scale, frames = 0.25 ** (levels - 1), 1
    yield _convolution("conv1", dims.z_dim, widths[0], frames, scale, is_split=False)
    yield from _middle(widths[0], frames, scale)
    for level, (before, after) in enumerate(pairwise(widths)):
        entering = before if level == 0 else before // 2
        for index in range(dims.num_res_blocks + 1):
            yield _residual(f"up {level}.{index}", entering, after, frames, scale, is_split=True)
            entering = after
        if level < levels - 1:
            is_temporal = dims.temporal_downsample[::-1][level]
            yield _upsample(f"upsample {level}", after, frames, scale, is_temporal=is_temporal)
            scale, frames = scale * 4, frames * (2 if is_temporal else 1)
    yield _head(widths[-1], 3 * dims.patch_size**2, frames, scale)


def _encoder(dims: VAEDims) -> Iterator[Layer]:
    widths = [dims.dim * factor for factor in (1, *dims.dim_mult)]
    scale, frames = 1.0, FRAMES_PER_LATENT
    yield _convolution("conv1", 3 * dims.patch_size**2, widths[0], frames, scale, is_split=False)
    for level, (before, after) in enumerate(pairwise(widths)):
        entering = before
        for index in range(dims.num_res_blocks):
            yield _residual(f"down {level}.{index}", entering, after, frames, scale, is_split=False)
            entering = after
        if level < len(dims.dim_mult) - 1:
            is_temporal = dims.temporal_downsample[level]
            yield _downsample(f"downsample {level}", after, frames, scale, is_temporal=is_temporal)
            scale, frames = scale / 4, frames // (2 if is_temporal else 1)
    yield from _middle(widths[-1], frames, scale)
    yield _head(widths[-1], 2 * dims.z_dim, frames, scale)


def grid_pixels(dims: VAEDims, size: Size) -> int:
    """Returns the pixels of the grid that the widest layers work on."""
    return size.area // dims.patch_size**2


def attention_multiply_adds(dims: VAEDims, size: Size) -> int:
    """Returns what the middle's attention takes of one block: q k^T and its product with v, over a frame's pixels."""
    positions = size.latent_width * size.latent_height
    return 2 * LATENT_FRAMES_PER_BLOCK * positions**2 * dims.decoder_dim * dims.dim_mult[-1]


def _convolution(name: str, before: int, after: int, frames: int, scale: float, *, is_split: bool) -> Layer:
    """A causal 3x3x3 convolution: its input, that behind two past frames, the past old and new, its output."""
    return Layer(
        name,
        parameters=27 * before * after + after,
        stream=scale * before * _PAST_FRAMES,
        held=scale * (before + after) * frames,
        multiply_adds=scale * frames * 27 * before * after,
        scale=scale,
        stacked=scale * before * (frames + 2 * _PAST_FRAMES),
        border=scale * before * frames,
        is_split=is_split,
    )


def _residual(name: str, before: int, after: int, frames: int, scale: float, *, is_split: bool) -> Layer:
    """Two convolutions beside a shortcut, a 1x1 convolution where the width changes.

    Callers hold the block's input, and the shortcut where it differs, while a convolution works.
    """
    first = _convolution(name, before, after, frames, scale, is_split=is_split)
    second = _convolution(name, after, after, frames, scale, is_split=is_split)
    worst = max(first, second, key=lambda layer: layer.peak_of(1.0, 1))
    shortcut = before * after if before != after else 0
    return replace(
        worst,
        parameters=first.parameters + second.parameters + before + after + (shortcut + after if shortcut else 0),
        stream=first.stream + second.stream,
        held=worst.held + scale * frames * (before + (after if shortcut else 0)),
        multiply_adds=first.multiply_adds + second.multiply_adds + scale * frames * shortcut,
    )


def _middle(width: int, frames: int, scale: float) -> Iterator[Layer]:
    yield _residual("middle 0", width, width, frames, scale, is_split=False)
    yield Layer(
        "middle attention",
        parameters=width + 4 * width * width + 4 * width,
        stream=0,
        held=scale * frames * width * 10,  # input, normed, q k v and what feeds them, output: far from the largest
        multiply_adds=scale * frames * 4 * width * width,
        scale=scale,
    )
    yield _residual("middle 2", width, width, frames, scale, is_split=False)


def _upsample(name: str, width: int, frames: int, scale: float, *, is_temporal: bool) -> Layer:
    """Doubles frames by a (3, 1, 1) convolution into twice the width, then each side: nearest, a 3x3 convolution."""
    frames_after = frames * (2 if is_temporal else 1)
    enlarged = 4 * scale * frames_after
    time_weights = 3 * width * 2 * width if is_temporal else 0
    return Layer(
        name,
        parameters=9 * width * (width // 2) + width // 2 + (time_weights + 2 * width if is_temporal else 0),
        stream=scale * width * _PAST_FRAMES if is_temporal else 0,
        held=scale * width * (frames + (frames_after if is_temporal else 0)) + enlarged * (width // 2),
        multiply_adds=enlarged * 9 * width * (width // 2) + scale * frames * time_weights,
        scale=4 * scale,
        stacked=enlarged * width,
        border=enlarged * width,
        is_split=True,
        is_stream_bordered=False,
    )


def _downsample(name: str, width: int, frames: int, scale: float, *, is_temporal: bool) -> Layer:
    frames_after = frames // (2 if is_temporal else 1)
    time_weights = 3 * width * width if is_temporal else 0
    return Layer(
        name,
        parameters=9 * width * width + width + (time_weights + width if is_temporal else 0),
        stream=scale / 4 * width if is_temporal else 0,
        held=scale * frames * width * 2.25,
        multiply_adds=scale / 4 * (frames * 9 * width * width + frames_after * time_weights),
        scale=scale,
    )


def _head(before: int, after: int, frames: int, scale: float) -> Layer:
    convolution = _convolution("head", before, after, frames, scale, is_split=True)
    return replace(
        convolution,
        parameters=convolution.parameters + before,
        held=convolution.held + scale * frames * before,
    )
