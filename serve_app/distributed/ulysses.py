"""Ulysses sequence parallel: ranks share the tokens of a call, and the heads inside its self-attention.

Outside attention every rank works on its own tokens: a part of each latent frame, so that what belongs to a frame, the
audio above all, needs no other rank. Around attention one all-to-all trades tokens for heads, and one trades back.
Tokens are padded with zeros to a multiple of the ranks, and the padding never reaches attention: DeepSpeed Ulysses
(Jacobs et al. 2023, arXiv 2309.14509), with a sequence cut frame by frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed
from torch.nn import functional

from serve_app.distributed.mesh import Axis
from serve_app.distributed.traffic import Traffic
from serve_app.model.audio_injector import AudioConditions
from serve_app.model.dit import Trunk
from serve_app.model.kv_cache import KeyValueMemory
from serve_app.model.layers import AttentionCore, KeyValues, TimeEmbedding
from serve_app.model.rope import RopeTable


@dataclass(frozen=True, eq=False)
class SharedRope(RopeTable):
    """The table of the whole sequence, which consists of so many latent frames."""

    frames: int

    @property
    def tokens_per_frame(self) -> int:
        return len(self) // self.frames


class Ulysses:
    """One rank's part of sequence and heads."""

    def __init__(self, axis: Axis, traffic: Traffic) -> None:
        self._axis = axis
        self._traffic = traffic

    def around_trunk(self, trunk: Trunk) -> Trunk:
        """Returns a trunk that takes and answers whole sequences, and runs `trunk` on this rank's tokens."""

        def shared(
            x_BLC: Tensor,
            time: TimeEmbedding,
            rope: RopeTable,
            text: list[KeyValues],
            memory: KeyValueMemory,
            audio: AudioConditions | None,
        ) -> Tensor:
            whole = SharedRope(rope.cos, rope.sin, frames=1 if audio is None else audio.num_frames)
            out = trunk(self._own(x_BLC, whole.frames), time, whole, text, memory, self._own_routing(audio))
            return out if audio is None else self._joined(out, whole)

        return shared

    def around_core(self, core: AttentionCore) -> AttentionCore:
        """Returns an attention over this rank's tokens that runs `core` over all tokens and this rank's heads."""

        def shared(
            layer: int, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, rope: RopeTable, memory: KeyValueMemory
        ) -> Tensor:
            assert isinstance(rope, SharedRope), "attention was reached past the shared trunk"
            own = torch.stack((q_BSHD, k_BSHD, v_BSHD)).squeeze(1)
            # Copies of their own: what remembers keys and values shall not keep the queries alive.
            q_BLhD, k_BLhD, v_BLhD = (traded.clone()[None] for traded in self._all_tokens(own, rope))
            return self._all_heads(core(layer, q_BLhD, k_BLhD, v_BLhD, rope, memory), rope)

        return shared

    def _own(self, x_BLC: Tensor, frames: int) -> Tensor:
        """Returns this rank's tokens [B, S, C] of a sequence [B, L, C]: the same part of each frame."""
        x_BFTC = self._padded(x_BLC.unflatten(1, (frames, -1)))
        return x_BFTC.chunk(self._axis.size, dim=2)[self._axis.index].flatten(1, 2)

    def _own_routing(self, audio: AudioConditions | None) -> AudioConditions | None:
        if audio is None or audio.routing is None:
            return audio
        return replace(audio, routing=self._own(audio.routing, audio.num_frames))

    def _joined(self, x_BSC: Tensor, rope: SharedRope) -> Tensor:
        """Returns the whole sequence [1, L, C] of every rank's tokens [1, S, C]."""
        own = x_BSC[0].contiguous()
        parts = [torch.empty_like(own) for _ in range(self._axis.size)]
        distributed.all_gather(parts, own, group=self._axis.group)
        self._traffic.add("ulysses", own.nbytes * (self._axis.size - 1))
        return self._in_order(torch.stack(parts).unflatten(1, (rope.frames, -1)), rope)[None]

    def _all_tokens(self, x_NSHD: Tensor, rope: SharedRope) -> Tensor:
        """Trades heads for tokens: [N, S, H, D] of this rank's tokens -> [N, L, h, D] of this rank's heads."""
        by_owner = x_NSHD.unflatten(2, (self._axis.size, -1)).permute(2, 1, 0, 3, 4)  # [R, S, N, h, D]
        from_ranks = self._exchanged(by_owner)
        return self._in_order(from_ranks.unflatten(1, (rope.frames, -1)), rope).transpose(0, 1)

    def _all_heads(self, out_BLHD: Tensor, rope: SharedRope) -> Tensor:
        """Trades tokens for heads: [1, L, h, D] of this rank's heads -> [1, S, H, D] of this rank's tokens."""
        out_FThD = self._padded(out_BLHD.unflatten(1, (rope.frames, -1)))[0]
        by_owner = torch.stack(out_FThD.chunk(self._axis.size, dim=1)).flatten(1, 2)  # [R, S, h, D]
        from_ranks = self._exchanged(by_owner)
        return from_ranks.permute(1, 0, 2, 3).flatten(1, 2)[None]

    def _padded(self, x_BFT: Tensor) -> Tensor:
        """Returns x [B, F, T, ...] with zeros behind the tokens of each frame, up to a multiple of the ranks."""
        missing = -x_BFT.shape[2] % self._axis.size
        return functional.pad(x_BFT, (0, 0) * (x_BFT.dim() - 3) + (0, missing)) if missing else x_BFT

    @staticmethod
    def _in_order(x_RFT: Tensor, rope: SharedRope) -> Tensor:
        """Returns [L, ...] of [R, F, tokens, ...]: every frame's parts side by side, without their padding."""
        return x_RFT.transpose(0, 1).flatten(1, 2)[:, : rope.tokens_per_frame].flatten(0, 1)

    def _exchanged(self, by_owner: Tensor) -> Tensor:
        """Hands every rank its part of [R, ...] and returns what this rank is handed by each: [R, ...]."""
        sent = by_owner.contiguous()
        received = torch.empty_like(sent)
        distributed.all_to_all_single(received, sent, group=self._axis.group)
        self._traffic.add("ulysses", sent.nbytes // self._axis.size * (self._axis.size - 1))
        return received
