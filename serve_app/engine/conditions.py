"""Conditions: what the denoiser needs to know of one video."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Conditions:
    """What holds for the whole video: `text` [L, text_dim]; `motion` latents [16, 19, h, w]."""

    text: Tensor
    motion: Tensor

    @property
    def reference(self) -> Tensor:
        """The portrait as one latent frame [16, 1, h, w]: a causal encoder sees the first frame alone."""
        return self.motion[:, :1]
