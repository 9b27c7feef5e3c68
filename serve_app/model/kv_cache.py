"""What a layer's self-attention remembers: the sink (reference and motion tokens) and a window of past blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from serve_app.model.rope import RopeTable


class KeyValueMemory(Protocol):
    """Takes the keys and values of the tokens at hand, answers all that they may attend to."""

    def extend(self, layer: int, k_BLHD: Tensor, v_BLHD: Tensor, rope: RopeTable) -> tuple[Tensor, Tensor]:
        """Returns rotated keys and values, each [B, M, H, D]; `k_BLHD` comes unrotated."""
        ...


@dataclass(frozen=True, eq=False)
class Sink:
    """Keys (not rotated) and values of the condition tokens, per layer [1, cond_tokens, H, D].

    One copy serves all timesteps. Stored without rotation, because their distance to the video varies per call.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def extend(self, layer: int, k_BLHD: Tensor, v_BLHD: Tensor, rope: RopeTable) -> tuple[Tensor, Tensor]:
        """Records one layer during the prefill; condition tokens attend to themselves alone."""
        assert layer == len(self.keys), f"layer {layer} follows {len(self.keys)} recorded layers"
        self.keys.append(k_BLHD)
        self.values.append(v_BLHD)
        return rope.rotate(k_BLHD), v_BLHD


class WindowCache:
    """Rotated keys and values of the last blocks AS SEEN AT ONE denoising step, [1, tokens, H, D] per layer."""

    def __init__(self, *, num_layers: int, num_tokens: int, num_heads: int, head_dim: int, like: Tensor) -> None:
        shape = (1, num_tokens, num_heads, head_dim)
        self.keys = [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(num_layers)]


@dataclass(frozen=True, eq=False)
class BlockMemory:
    """What one denoising call attends to: the sink, the window, and the block itself.

    `start` is the token slot of this block; `filled` counts the valid tokens of the window, this block included.
    `sink_rope` turns the sink's keys for this call.
    """

    sink: Sink
    window: WindowCache
    sink_rope: RopeTable
    start: int
    filled: int

    def extend(self, layer: int, k_BLHD: Tensor, v_BLHD: Tensor, rope: RopeTable) -> tuple[Tensor, Tensor]:
        keys, values = self.window.keys[layer], self.window.values[layer]
        block = slice(self.start, self.start + k_BLHD.shape[1])
        keys[:, block] = rope.rotate(k_BLHD)
        values[:, block] = v_BLHD
        return (
            torch.cat((self.sink_rope.rotate(self.sink.keys[layer]), keys[:, : self.filled]), dim=1),
            torch.cat((self.sink.values[layer], values[:, : self.filled]), dim=1),
        )
