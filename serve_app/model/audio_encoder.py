"""Causal audio encoder: speech features of a block become a few audio tokens per latent frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from serve_app.model.config import DiTConfig

_NORM_EPS = 1e-6


class CausalAudioEncoder(nn.Module):
    """Mixes the speech encoder's hidden states and reduces video frames 4:1 to latent frames.

    Input [A, 25, C, frames] (A speakers); outputs: tokens [A, latent frames, num_token + 1, dim] and
    global [A, latent frames, dim].
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((1, config.num_audio_states, 1, 1), 0.01))
        self.encoder = _MotionEncoder(config.audio_dim, config.dim, config.num_audio_token)

    def forward(self, features_AKCF: Tensor) -> tuple[Tensor, Tensor]:
        weights = functional.silu(self.weights)
        mixed_ACF = (features_AKCF * weights).sum(dim=1) / weights.sum(dim=1)
        return self.encoder(mixed_ACF)

    def encode_block(self, features_AKCF: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes the 12 video frames of one block as if its first frame had lasted 73 frames before.

        The encoder pads by repeating, so one extra frame in front gives what 73 give: the reference's
        19 outputs for the past are this call's first output.
        """
        tokens, overall = self(torch.cat((features_AKCF[..., :1], features_AKCF), dim=-1))
        return tokens[:, 1:], overall[:, 1:]


class _MotionEncoder(nn.Module):
    def __init__(self, in_dim: int, dim: int, num_token: int) -> None:
        super().__init__()
        self.num_token = num_token
        self.conv1_local = _CausalConv1d(in_dim, dim // 4 * num_token, stride=1)
        self.conv1_global = _CausalConv1d(in_dim, dim // 4, stride=1)
        self.conv2 = _CausalConv1d(dim // 4, dim // 2, stride=2)
        self.conv3 = _CausalConv1d(dim // 2, dim, stride=2)
        self.final_linear = nn.Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x_ACF: Tensor) -> tuple[Tensor, Tensor]:
        speakers = x_ACF.shape[0]
        local = self.conv1_local(x_ACF).unflatten(1, (self.num_token, -1)).flatten(0, 1)
        tokens = self._reduce(local).unflatten(0, (speakers, self.num_token)).transpose(1, 2)
        padding = self.padding_tokens.expand(speakers, tokens.shape[1], 1, -1)
        overall = self.final_linear(self._reduce(self.conv1_global(x_ACF)))
        return torch.cat((tokens, padding), dim=2), overall

    def _reduce(self, x_NCF: Tensor) -> Tensor:
        """Returns [N, frames / 4, dim]."""
        x_NCF = _norm_act(x_NCF)
        x_NCF = _norm_act(self.conv2(x_NCF))
        return _norm_act(self.conv3(x_NCF)).transpose(1, 2)


class _CausalConv1d(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_dim, out_dim, kernel_size=3, stride=stride)

    def forward(self, x_NCF: Tensor) -> Tensor:
        return self.conv(functional.pad(x_NCF, (2, 0), mode="replicate"))


def _norm_act(x_NCF: Tensor) -> Tensor:
    normed = functional.layer_norm(x_NCF.transpose(1, 2), (x_NCF.shape[1],), eps=_NORM_EPS)
    return functional.silu(normed).transpose(1, 2)
