"""Memory of the VAE: the decoder's stream and working set, whole or as a strip of the picture's width."""

from __future__ import annotations

from functools import lru_cache

from serve_app.planning.geometry import FRAMES_PER_LATENT, LATENT_FRAMES_PER_BLOCK, Size
from serve_app.planning.vae_network import VAEDims, grid_pixels, walk_decoder, walk_encoder

_FLOAT32 = 4


@lru_cache(maxsize=4096)
def stream_bytes(dims: VAEDims, size: Size, element: int, strip: float = 1.0) -> int:
    """Returns what the decoder remembers of one video: two past frames of every causal convolution's input.

    `strip` is the share of the width that this rank decodes; the first convolution and the middle work whole.
    """
    per_pixel = sum(layer.stream_of(strip, size.width // dims.patch_size) for layer in walk_decoder(dims))
    return round(per_pixel * grid_pixels(dims, size)) * element


@lru_cache(maxsize=4096)
def decode_bytes(dims: VAEDims, size: Size, element: int, strip: float = 1.0) -> int:
    """Returns the working memory of decoding one block, latent frame by latent frame.

    The worst moment of any layer, at the last of them, beside the float32 frames of those before.
    """
    per_pixel = max(layer.peak_of(strip, size.width // dims.patch_size) for layer in walk_decoder(dims))
    done = (LATENT_FRAMES_PER_BLOCK - 1) * FRAMES_PER_LATENT * 3 * round(strip * size.area) * _FLOAT32
    return round(per_pixel * grid_pixels(dims, size)) * element + done


@lru_cache(maxsize=4096)
def encode_bytes(dims: VAEDims, size: Size, element: int) -> int:
    """Returns the working memory of encoding the portrait: the encoder's stream, its worst moment, the frame itself."""
    layers = walk_encoder(dims)
    per_pixel = sum(layer.stream for layer in layers) + max(layer.peak_of(1.0, size.width) for layer in layers)
    chunk = 4 * 3 * dims.patch_size**2 * element
    return (
        round(per_pixel * grid_pixels(dims, size)) * element
        + grid_pixels(dims, size) * chunk
        + 3 * size.area * _FLOAT32
    )
