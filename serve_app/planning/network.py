"""The sizes of the networks as planning needs them: widths, exact parameter counts, what is sharded or streamed.

Planning may not import the model; tests hold these numbers equal to the published manifests and to `model.config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from serve_app.planning.vae_network import VAEDims

_Tensor = tuple[int, int]
"""Rows, and elements of a row, bias included."""

DType = Literal["bfloat16", "float32"]
ELEMENT_BYTES: dict[DType, int] = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class DiTDims:
    """The transformer; defaults are the published one."""

    dim: int = 5120
    ffn_dim: int = 13824
    freq_dim: int = 256
    num_heads: int = 40
    num_layers: int = 40
    in_dim: int = 16
    out_dim: int = 16
    cond_dim: int = 16
    audio_dim: int = 1024
    num_audio_token: int = 4
    num_audio_states: int = 25
    num_injectors: int = 12
    text_len: int = 512
    text_dim: int = 4096

    @cached_property
    def units(self) -> tuple[int, ...]:
        """Parameters of every unit that weight shards gather and offload streams (`distributed.units`)."""
        return self.unit_shards(1)

    def unit_shards(self, shards: int) -> tuple[int, ...]:
        """Returns the parameters of every unit that one of so many ranks keeps: its rows of each tensor, rounded up."""
        layer, attention, adain = (
            sum(-(-rows // shards) * columns for rows, columns in tensors)
            for tensors in (self._layer_tensors, self._attention_tensors, self._adain_tensors)
        )
        return (*(layer,) * self.num_layers, *(attention,) * self.num_injectors, *(adain,) * self.num_injectors)

    @property
    def _attention_tensors(self) -> list[_Tensor]:
        """Projections q, k, v, o with biases, and the norms of q and k."""
        return [(self.dim, self.dim + 1)] * 4 + [(self.dim, 1)] * 2

    @property
    def _layer_tensors(self) -> list[_Tensor]:
        """Self- and text attention, the norm between them, feed-forward, modulation (which is one row)."""
        feed_forward = [(self.ffn_dim, self.dim + 1), (self.dim, self.ffn_dim + 1)]
        return [*self._attention_tensors * 2, *[(self.dim, 1)] * 2, *feed_forward, (1, 6 * self.dim)]

    @property
    def _adain_tensors(self) -> list[_Tensor]:
        return [(2 * self.dim, self.dim + 1)]

    @cached_property
    def resident_parameters(self) -> int:
        """All that stays whole on every rank: embeddings, time, head, frame packer, causal audio encoder."""
        dim = self.dim
        patches = _linear(4 * self.in_dim, dim) + _linear(4 * self.cond_dim, dim)
        text = _linear(self.text_dim, dim) + _linear(dim, dim)
        time = _linear(self.freq_dim, dim) + _linear(dim, dim) + _linear(dim, 6 * dim)
        head = _linear(dim, 4 * self.out_dim) + 2 * dim
        packer = sum(_linear(self.in_dim * volume, dim) for volume in (4, 2 * 16, 4 * 64))
        return patches + text + time + head + packer + 3 * dim + self._audio_encoder_parameters

    @property
    def _audio_encoder_parameters(self) -> int:
        dim, quarter, half = self.dim, self.dim // 4, self.dim // 2
        convolutions = (
            _linear(3 * self.audio_dim, quarter * self.num_audio_token)
            + _linear(3 * self.audio_dim, quarter)
            + _linear(3 * quarter, half)
            + _linear(3 * half, dim)
        )
        return self.num_audio_states + convolutions + _linear(dim, dim) + dim

    @cached_property
    def parameters(self) -> int:
        return sum(self.units) + self.resident_parameters


@dataclass(frozen=True)
class TextEncoderDims:
    """The UMT5 encoder; defaults are UMT5-xxl."""

    vocab: int = 256384
    dim: int = 4096
    dim_attn: int = 4096
    dim_ffn: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32

    @property
    def parameters(self) -> int:
        layer = (
            4 * self.dim * self.dim_attn
            + 3 * self.dim * self.dim_ffn
            + 2 * self.dim
            + self.num_buckets * self.num_heads
        )
        return self.vocab * self.dim + self.num_layers * layer + self.dim


@dataclass(frozen=True)
class SpeechEncoderDims:
    """The wav2vec2 encoder; defaults are wav2vec2-large-xlsr-53. `strides` and `kernels` are of its convolutions."""

    hidden: int = 1024
    num_layers: int = 24
    intermediate: int = 4096
    conv_dims: tuple[int, ...] = (512,) * 7
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    position_kernel: int = 128
    position_groups: int = 16

    @property
    def position_parameters(self) -> int:
        """Weight directions of the positional convolution."""
        return self.hidden * (self.hidden // self.position_groups) * self.position_kernel

    @property
    def parameters(self) -> int:
        """Convolutions with norms, projection, positional convolution (weight-normed), layers, final norm, mask."""
        inputs = (1, *self.conv_dims[:-1])
        convolutions = sum(
            _linear(kernel * before, after) + 2 * after
            for before, after, kernel in zip(inputs, self.conv_dims, self.kernels, strict=True)
        )
        projection = 2 * self.conv_dims[-1] + _linear(self.conv_dims[-1], self.hidden)
        position = self.position_parameters + self.position_kernel + self.hidden
        attention = 4 * _linear(self.hidden, self.hidden)
        feed_forward = _linear(self.hidden, self.intermediate) + _linear(self.intermediate, self.hidden)
        layer = attention + feed_forward + 4 * self.hidden
        return convolutions + projection + position + self.num_layers * layer + 2 * self.hidden + self.hidden


@dataclass(frozen=True)
class ModelDims:
    """All networks of one model; defaults are the published ones."""

    dit: DiTDims = DiTDims()
    vae: VAEDims = field(default_factory=VAEDims)
    text: TextEncoderDims = TextEncoderDims()
    speech: SpeechEncoderDims = field(default_factory=SpeechEncoderDims)


TINY_CHECKPOINT = "tiny"
"""What users write for the built-in model; any other checkpoint is a folder."""
PUBLISHED = ModelDims()
TINY = ModelDims(
    dit=DiTDims(
        dim=256,
        ffn_dim=1024,
        freq_dim=128,
        num_heads=4,
        num_layers=6,
        audio_dim=64,
        num_injectors=3,
        text_dim=128,
    ),
    vae=VAEDims(
        dim=16,
        decoder_dim=24,
        dim_mult=(1, 2, 4),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        patch_size=2,
    ),
    text=TextEncoderDims(vocab=1024, dim=128, dim_attn=128, dim_ffn=256, num_heads=4, num_layers=2),
    speech=SpeechEncoderDims(hidden=64, intermediate=128, conv_dims=(32,) * 7),
)
"""The built-in model (`model.tiny`)."""


def _linear(inputs: int, outputs: int) -> int:
    """Parameters of a linear map or convolution with bias; `inputs` counts what one output sees."""
    return inputs * outputs + outputs
