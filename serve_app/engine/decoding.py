"""Frame decoder: the picture side of one video, one continuous stream from latents to uint8 frames."""

from __future__ import annotations

import torch
from torch import Tensor

from serve_app.errors import NotFiniteError
from serve_app.model.vae import Stream, VideoVAE
from serve_app.planning.geometry import LATENT_FRAMES_PER_BLOCK, STARTUP_FRAMES, BlockPosition

PRIMING_LATENTS = 7
"""The decoder first sees this much of the still portrait, so that the video begins in full swing."""


class FrameDecoder:
    """Decodes the blocks of one video in order; its stream belongs to this video alone."""

    def __init__(self, vae: VideoVAE, motion_CTHW: Tensor) -> None:
        """Primes the stream with the first motion latents; their frames are thrown away."""
        self._vae = vae
        self._stream = Stream()
        priming = motion_CTHW[:, :PRIMING_LATENTS]
        # One block at a time: priming needs no more memory than decoding.
        for chunk in priming.split(LATENT_FRAMES_PER_BLOCK, dim=1):
            vae.decode(chunk, self._stream)

    def decode(self, latents_CTHW: Tensor, block: BlockPosition) -> Tensor:
        """Returns the block's frames, float32 [3, frames, H, W] in [-1, 1]: 12, and 9 for block 0."""
        video = self._vae.decode(latents_CTHW, self._stream)
        return video[:, STARTUP_FRAMES:] if block.index == 0 else video


def to_pixels(video_CTHW: Tensor) -> Tensor:
    """Returns uint8 [frames, H, W, 3] of video [3, frames, H, W] in [-1, 1]; raises NotFiniteError for NaN."""
    if not torch.isfinite(video_CTHW).all():
        raise NotFiniteError(
            "the model made frames with NaN or infinity",
            remedy="try again; if it comes back, `live-avatar checkpoint verify` reads the weights",
        )
    pixels = ((video_CTHW + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous()
