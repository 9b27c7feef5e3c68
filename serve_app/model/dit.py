"""The causal speech-to-video diffusion transformer (Wan2.2-S2V with per-step KV caches).

The calls that make a video: `embed_text` and, per step, `embed_time` once; `prefill_sink` for the portrait;
`embed_audio` for each block; `forward` for each (block, step). Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from serve_app.model.audio_encoder import CausalAudioEncoder
from serve_app.model.audio_injector import AudioConditions, AudioInjector
from serve_app.model.config import DiTConfig
from serve_app.model.kv_cache import KeyValueMemory, Sink
from serve_app.model.layers import DiTLayer, Float32Linear, Head, KeyValues, TimeEmbedding
from serve_app.model.reference import FramePacker
from serve_app.model.rope import RopeTable

PATCH = (1, 2, 2)
_NOISY, _REFERENCE, _MOTION = 0, 1, 2

Trunk = Callable[[Tensor, TimeEmbedding, RopeTable, list[KeyValues], KeyValueMemory, "AudioConditions | None"], Tensor]
"""(tokens, time, rope, text, memory, audio) -> patches; see `CausalDiT.run_layers`."""


class CausalDiT(nn.Module):
    """Predicts the flow-match velocity of a block of latents from its past, the portrait, the voice and the text."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, PATCH, stride=PATCH)
        self.cond_encoder = nn.Conv3d(config.cond_dim, dim, PATCH, stride=PATCH)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(Float32Linear(config.freq_dim, dim), nn.SiLU(), Float32Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Float32Linear(dim, dim * 6))
        self.blocks = nn.ModuleList(DiTLayer(config, index) for index in range(config.num_layers))
        self.head = Head(config, patch_volume=4)
        self.casual_audio_encoder = CausalAudioEncoder(config)  # the published spelling
        self.audio_injector = AudioInjector(config)
        self.trainable_cond_mask = nn.Embedding(3, dim)
        self.frame_packer = FramePacker(config.in_dim, dim, drop_mode="padd")
        self.trunk: Trunk = self.run_layers

    @property
    def layers(self) -> list[DiTLayer]:
        """The transformer layers, typed."""
        return cast("list[DiTLayer]", list(self.blocks))

    def embed_text(self, context_LC: Tensor) -> list[KeyValues]:
        """Returns each layer's keys and values of the text [L, text_dim], zero-padded to text_len."""
        padded = functional.pad(context_LC, (0, 0, 0, self.config.text_len - context_LC.shape[0]))
        embedded = self.text_embedding(padded[None].to(self.head.head.weight.dtype))
        return [layer.text_key_values(embedded) for layer in self.layers]

    def embed_time(self, timestep: float) -> TimeEmbedding:
        """Embeds a timestep of the noise schedule, 0 .. 1000; made once per video and step."""
        sinusoid = _sinusoid(timestep, self.config.freq_dim).to(self.head.head.weight.device)
        overall_C = self.time_embedding(sinusoid)
        return TimeEmbedding(overall_C, self.time_projection(overall_C).unflatten(0, (6, -1)))

    def embed_audio(self, features_AKCF: Tensor, routing: Tensor | None = None) -> AudioConditions:
        """Prepares the voice of one block.

        Features [A, 25, audio_dim, 12] for A speakers; `routing` [A, 3, rows, columns, 1] tells which token
        listens to whom (None: one speaker).
        """
        tokens, overall = self.casual_audio_encoder.encode_block(features_AKCF.to(self.head.head.weight.dtype))
        flat = None if routing is None else routing.flatten(1, 3)
        return self.audio_injector.conditions(tokens, overall, flat)

    def prefill_sink(
        self,
        reference_C1HW: Tensor,
        motion_CTHW: Tensor,
        *,
        text: list[KeyValues],
        rope: RopeTable,
        keep_motion: bool = True,
    ) -> Sink:
        """Runs the condition tokens through all layers at timestep 0 and returns their keys and values.

        `rope` covers reference and motion tokens. Without `keep_motion` the motion tokens are zeroed, rotary
        table included, but stay in the sequence.
        """
        dtype = self.patch_embedding.weight.dtype
        reference = _tokens(self.patch_embedding(reference_C1HW[None].to(dtype)))
        motion = self.frame_packer(motion_CTHW.to(dtype))
        if not keep_motion:
            motion = torch.zeros_like(motion)
            rope = _blank_after(rope, reference.shape[1])
        kinds = self.trainable_cond_mask.weight
        x_BLC = torch.cat((reference + kinds[_REFERENCE], motion + kinds[_MOTION]), dim=1).float()
        sink = Sink()
        self.trunk(x_BLC, self.embed_time(0.0), rope, text, sink, None)
        return sink

    def forward(
        self,
        latents_CTHW: Tensor,
        *,
        time: TimeEmbedding,
        text: list[KeyValues],
        audio: AudioConditions,
        rope: RopeTable,
        memory: KeyValueMemory,
        pose_CTHW: Tensor | None = None,
    ) -> Tensor:
        """Returns the velocity [16, 3, h, w], float32, of a block of noisy latents of the same shape.

        `pose_CTHW` adds pose latents; None is the blank pose. The block's keys and values enter `memory`.
        """
        patches_BLP = self.trunk(self._embed_block(latents_CTHW, pose_CTHW), time, rope, text, memory, audio)
        _, frames, height, width = latents_CTHW.shape
        return _unpatchify(patches_BLP[0].float(), (frames, height // 2, width // 2))

    def run_layers(
        self,
        x_BLC: Tensor,
        time: TimeEmbedding,
        rope: RopeTable,
        text: list[KeyValues],
        memory: KeyValueMemory,
        audio: AudioConditions | None,
    ) -> Tensor:
        """Runs tokens [1, L, dim] through all layers into `memory`; returns patches [1, L, 2 * 2 * out_dim].

        Without audio the tokens are conditions: only the memory counts, and they come back as they leave the last
        layer. `trunk` is this method, or what a parallel layout puts around it from outside.
        """
        for layer, text_kv in zip(self.layers, text, strict=True):
            x_BLC = layer(x_BLC, time, rope, text_kv, memory)
            if audio is not None and layer.index in self.audio_injector.index_of_layer:
                x_BLC = x_BLC + self.audio_injector(x_BLC, layer.index, audio)
        return x_BLC if audio is None else self.head(x_BLC, time)

    def _embed_block(self, latents_CTHW: Tensor, pose_CTHW: Tensor | None) -> Tensor:
        dtype = self.patch_embedding.weight.dtype
        embedded = self.patch_embedding(latents_CTHW[None].to(dtype))
        # A blank pose is all zeros, of which the encoder leaves its bias.
        assert self.cond_encoder.bias is not None
        blank = self.cond_encoder.bias[:, None, None, None]
        embedded = embedded + (blank if pose_CTHW is None else self.cond_encoder(pose_CTHW[None].to(dtype)))
        return (_tokens(embedded) + self.trainable_cond_mask.weight[_NOISY]).float()


def _tokens(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.flatten(2).transpose(1, 2)


def _blank_after(rope: RopeTable, tokens: int) -> RopeTable:
    keep = (torch.arange(len(rope), device=rope.cos.device) < tokens).unsqueeze(1)
    return RopeTable(rope.cos * keep, rope.sin * keep)


def _sinusoid(timestep: float, dim: int) -> Tensor:
    """Returns cos and sin of timestep / 10000^(i / half), i < half = dim / 2, computed in float64: [dim]."""
    half = dim // 2
    angles = timestep * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.cat((angles.cos(), angles.sin())).float()


def _unpatchify(x_LP: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Turns tokens [frames * rows * columns, 2 * 2 * C] into latents [C, frames, 2 rows, 2 columns]."""
    frames, rows, columns = grid
    x = x_LP.view(frames, rows, columns, PATCH[1], PATCH[2], -1)
    return x.permute(5, 0, 1, 3, 2, 4).reshape(-1, frames, rows * PATCH[1], columns * PATCH[2])
