"""Text encoder: the UMT5 encoder of `transformers` under the published names, and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from serve_app.errors import CheckpointError
from serve_app.model.config import TextEncoderConfig

_LAYER_NAMES = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


_OUTER_NAMES = {"token_embedding.weight": "umt5.shared.weight", "norm.weight": "umt5.encoder.final_layer_norm.weight"}
_LAYER_PREFIX = "umt5.encoder.block."


class TextEncoder(nn.Module):
    """Encodes token ids; parameters live in `self.umt5` under transformers' names."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.umt5 = UMT5EncoderModel(
            UMT5Config(
                vocab_size=config.vocab,
                d_model=config.dim,
                d_kv=config.dim_attn // config.num_heads,
                d_ff=config.dim_ffn,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                relative_attention_num_buckets=config.num_buckets,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
            )
        )
        self.umt5.encoder.embed_tokens = self.umt5.shared  # one module, so that its weight is loaded once

    def forward(self, ids_L: Tensor) -> Tensor:
        """Returns the text context [L, dim] of one prompt's token ids [L].

        A prompt alone needs no padding: the reference pads to 512, masks the padding out and cuts it off again.
        """
        mask = torch.ones_like(ids_L[None])
        return self.umt5(input_ids=ids_L[None], attention_mask=mask).last_hidden_state[0]


def to_transformers_names(published: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Renames the tensors of a published `models_t5_*.pth` to those of `TextEncoder`; unknown names stay."""
    return ((_transformers_name(name), tensor) for name, tensor in published)


def published_name(name: str) -> str:
    """Returns the published name of a parameter of `TextEncoder`."""
    if name in _OUTER_NAMES.values():
        return next(published for published, ours in _OUTER_NAMES.items() if ours == name)
    layer, inner, leaf = _parts(name.removeprefix(_LAYER_PREFIX))
    published = next(published for published, ours in _LAYER_NAMES.items() if ours == inner)
    return f"blocks.{layer}.{published}.{leaf}"


def _transformers_name(name: str) -> str:
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    layer, inner, leaf = _parts(name.removeprefix("blocks."))
    return f"{_LAYER_PREFIX}{layer}.{_LAYER_NAMES[inner]}.{leaf}" if inner in _LAYER_NAMES else name


def _parts(name: str) -> tuple[str, str, str]:
    """Splits "<layer>.<inner>.<leaf>"."""
    layer, _, rest = name.partition(".")
    inner, _, leaf = rest.rpartition(".")
    return layer, inner, leaf


class PromptTokenizer:
    """Cuts a prompt into token ids, at most `text_len`, ending with the end-of-sentence token."""

    def __init__(self, path: Path, text_len: int) -> None:
        """Raises CheckpointError when the file is no tokenizer."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"{path} is no tokenizer: {error}", remedy="download it again") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=text_len)

    def __call__(self, prompt: str) -> Tensor:
        """Returns int64 ids [L]; `prompt` is already cleaned."""
        return torch.tensor(self._tokenizer.encode(prompt).ids, dtype=torch.int64)
