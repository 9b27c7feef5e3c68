"""Configurations of the networks: frozen, read from the JSON files of a checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar

from serve_app.errors import CheckpointError

_FIXED_DIT_SETTINGS: Mapping[str, object] = {
    "patch_size": (1, 2, 2),
    "enable_adain": True,
    "adain_mode": "attn_norm",
    "zero_timestep": True,
    "enable_motioner": False,
    "enable_tsm": False,
    "enable_framepack": True,
    "framepack_drop_mode": "padd",
    "qk_norm": True,
    "cross_attn_norm": True,
}
"""Settings of the published family that have one value here; a checkpoint that says otherwise is refused."""

LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
"""Per-channel statistics of the Wan2.1 latents, as published with the VAE."""


@dataclass(frozen=True)
class DiTConfig:
    """The causal speech-to-video transformer; defaults are the published 14B model."""

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
    """Hidden states of the speech encoder: the input of its first layer and the output of each of its 24."""

    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
    text_len: int = 512
    text_dim: int = 4096
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads a published `config.json`; raises CheckpointError for a variant that is not implemented."""
        for name, expected in _FIXED_DIT_SETTINGS.items():
            found = values.get(name, expected)
            if (tuple(found) if isinstance(found, list) else found) != expected:
                raise CheckpointError(
                    f"the checkpoint's config.json has {name}={found!r}; this version runs {name}={expected!r} only",
                    remedy="use the published Wan2.2-S2V-14B configuration",
                )
        return _from_known(cls, values)


@dataclass(frozen=True)
class VAEConfig:
    """The causal video VAE; defaults are the published Wan2.1 VAE.

    `dim` and `decoder_dim` are base widths of encoder and decoder; `patch_size` 2 folds 2x2 pixels into channels.
    """

    dim: int = 96
    decoder_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    patch_size: int = 1
    latents_mean: tuple[float, ...] = LATENTS_MEAN
    latents_std: tuple[float, ...] = LATENTS_STD

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads a VAE configuration in the published spelling or ours; raises CheckpointError for a variant."""
        if values.get("attn_scales"):
            raise CheckpointError(
                f"the VAE has attention at scales {values['attn_scales']!r}; this version has it in the middle only",
                remedy="use the published Wan2.1 VAE",
            )
        spelled = dict(values)
        if "temperal_downsample" in spelled:
            spelled["temporal_downsample"] = spelled.pop("temperal_downsample")
        spelled.setdefault("decoder_dim", spelled.get("dim", cls.dim))
        return _from_known(cls, spelled)


@dataclass(frozen=True)
class TextEncoderConfig:
    """The UMT5 encoder in the published spelling; defaults are UMT5-xxl."""

    vocab: int = 256384
    dim: int = 4096
    dim_attn: int = 4096
    dim_ffn: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return _from_known(cls, values)


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of all networks of one model; defaults are the published ones. `speech` is for `speech_config`."""

    name: str = "full"
    dit: DiTConfig = DiTConfig()
    vae: VAEConfig = VAEConfig()
    text: TextEncoderConfig = TextEncoderConfig()
    speech: Mapping[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "conv_dim": [512] * 7,
        }
    )


_Config = TypeVar("_Config")


def _from_known(cls: type[_Config], values: Mapping[str, Any]) -> _Config:
    """Builds a config from the fields that it knows; lists become tuples."""
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})
