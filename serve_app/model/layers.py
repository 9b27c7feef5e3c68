"""The transformer layer: modulated self-attention with memory, cross-attention on the text, feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from serve_app.model.attention import attend
from serve_app.model.config import DiTConfig
from serve_app.model.kv_cache import KeyValueMemory
from serve_app.model.rope import RopeTable


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dim, in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = functional.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return normed.to(x.dtype) * self.weight


class Float32Linear(nn.Linear):
    """A linear map computed in float32 whatever its weights are stored in: the timestep needs the digits."""

    ROWS_AT_ONCE = 4096

    def forward(self, x: Tensor) -> Tensor:
        # By parts: a float32 copy of the largest of these matrices would take 0.6 GB at full size.
        parts = zip(self.weight.split(self.ROWS_AT_ONCE), self.bias.split(self.ROWS_AT_ONCE), strict=True)
        return torch.cat([functional.linear(x.float(), weight.float(), bias.float()) for weight, bias in parts], dim=-1)


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys and values of a context that stays the same: [B, M, H, D]."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """The projections that self-attention, text attention and audio attention share: q, k, v, o, normed q and k."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def query(self, x_BLC: Tensor) -> Tensor:
        return self._heads(self.norm_q(self.q(x_BLC)))

    def key_values(self, x_BMC: Tensor) -> KeyValues:
        return KeyValues(self._heads(self.norm_k(self.k(x_BMC))), self._heads(self.v(x_BMC)))

    def output(self, out_BLHD: Tensor) -> Tensor:
        return self.o(out_BLHD.flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


class CrossAttention(Attention):
    """Attends to a fixed context whose keys and values were made once."""

    def forward(self, x_BLC: Tensor, context: KeyValues) -> Tensor:
        return self.output(attend(self.query(x_BLC), context.keys, context.values))


AttentionCore = Callable[[int, Tensor, Tensor, Tensor, RopeTable, KeyValueMemory], Tensor]


def memory_attention(
    layer: int, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, rope: RopeTable, memory: KeyValueMemory
) -> Tensor:
    """Attends from these tokens to all that the memory holds, themselves included; [B, L, H, D]."""
    keys, values = memory.extend(layer, k_BLHD, v_BLHD, rope)
    return attend(rope.rotate(q_BLHD), keys, values)


class SelfAttention(Attention):
    """Self-attention through a memory. `core` is what a parallel layout wraps from outside."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__(dim, num_heads, eps)
        self.core: AttentionCore = memory_attention

    def forward(self, x_BLC: Tensor, layer: int, rope: RopeTable, memory: KeyValueMemory) -> Tensor:
        own = self.key_values(x_BLC)
        return self.output(self.core(layer, self.query(x_BLC), own.keys, own.values, rope, memory))


@dataclass(frozen=True, eq=False)
class TimeEmbedding:
    """One timestep, equal for all tokens, float32: overall [dim], and its modulation of every layer [6, dim]."""

    overall_C: Tensor
    modulation_6C: Tensor


class DiTLayer(nn.Module):
    """One transformer layer. The residual stream is float32, the linear maps run in the weights' dtype."""

    def __init__(self, config: DiTConfig, index: int) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.index = index
        self.eps = eps
        self.self_attn = SelfAttention(dim, config.num_heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.cross_attn = CrossAttention(dim, config.num_heads, eps)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def text_key_values(self, embedded_BLC: Tensor) -> KeyValues:
        """Returns what this layer's cross-attention sees of the embedded text [B, L, dim]; made once per video."""
        return self.cross_attn.key_values(embedded_BLC)

    def forward(
        self, x_BLC: Tensor, time: TimeEmbedding, rope: RopeTable, text: KeyValues, memory: KeyValueMemory
    ) -> Tensor:
        """Returns the tokens [B, L, dim] after this layer, float32."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation.float()[0] + time.modulation_6C).unbind(0)
        dtype = self.norm3.weight.dtype
        normed = modulated_norm(x_BLC, shift, scale, self.eps).to(dtype)
        x_BLC = x_BLC + self.self_attn(normed, self.index, rope, memory) * gate
        x_BLC = x_BLC + self.cross_attn(self.norm3(x_BLC.to(dtype)), text)
        normed = modulated_norm(x_BLC, ffn_shift, ffn_scale, self.eps).to(dtype)
        return x_BLC + self.ffn(normed) * ffn_gate


class Head(nn.Module):
    """Maps tokens to latent patches: modulated norm, then linear."""

    def __init__(self, config: DiTConfig, patch_volume: int) -> None:
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.dim, config.out_dim * patch_volume)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x_BLC: Tensor, time: TimeEmbedding) -> Tensor:
        shift, scale = (self.modulation.float()[0] + time.overall_C).unbind(0)
        return self.head(modulated_norm(x_BLC, shift, scale, self.eps).to(self.head.weight.dtype))


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Returns layer_norm(x) * (1 + scale) + shift in float32, over the last dim."""
    return functional.layer_norm(x.float(), (x.shape[-1],), eps=eps) * (1 + scale) + shift
