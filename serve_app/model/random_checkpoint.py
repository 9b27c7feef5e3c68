"""Writes checkpoint folders in the published layout with random weights, always the same ones."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from tokenizers.trainers import UnigramTrainer
from torch import Tensor, nn

from serve_app.model.checkpoint import BASE_FOLDER, DIT_CONFIG, DIT_STEM, LORA_FILE, VAE_FILE
from serve_app.model.config import DiTConfig, ModelSizes, TextEncoderConfig, VAEConfig
from serve_app.model.dit import CausalDiT
from serve_app.model.full_checkpoint import SPEECH_FOLDER, TEXT_ENCODER_FILE, TOKENIZER_FILE
from serve_app.model.lora import adapted_linears
from serve_app.model.speech_encoder import SpeechEncoder, speech_config
from serve_app.model.text_encoder import TextEncoder, published_name
from serve_app.model.vae import VideoVAE

_LORA_RANK = 4
_SHARDS = 2
_SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")


def write_checkpoint(root: Path, model: ModelSizes) -> None:
    """Writes a complete checkpoint folder with random weights; the same bytes for the same `model`."""
    base = root / BASE_FOLDER
    base.mkdir(parents=True)
    _write_dit(base, root / LORA_FILE, model.dit)
    _write_vae(base, model.vae)
    _write_text_encoder(base, model.text)
    _write_speech_encoder(base / SPEECH_FOLDER, model.speech)
    _write_tokenizer(base / TOKENIZER_FILE, model.text.vocab)


def _write_dit(base: Path, lora_file: Path, config: DiTConfig) -> None:
    with torch.device("meta"):
        dit = CausalDiT(config)
    _write_json(base / DIT_CONFIG, {"_class_name": "WanModel_S2V", "model_type": "s2v", **asdict(config)})
    tensors = {name: tensor.bfloat16() for name, tensor in _random_weights(dit).items()}
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(_SHARDS):
        file = f"{DIT_STEM}-{shard + 1:05d}-of-{_SHARDS:05d}.safetensors"
        members = names[shard::_SHARDS]
        save_file({name: tensors[name] for name in members}, base / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(members, file)
    _write_json(base / f"{DIT_STEM}.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    lora_file.parent.mkdir()
    save_file(_random_lora(dit), lora_file, metadata={"format": "pt"})


def _random_lora(dit: CausalDiT) -> dict[str, Tensor]:
    adapters = {}
    for name, linear in adapted_linears(dit).items():
        for half, shape in (("A", (_LORA_RANK, linear.in_features)), ("B", (linear.out_features, _LORA_RANK))):
            key = f"base_model.model.{name}.lora_{half}.default.weight"
            adapters[key] = _random(key, shape, scale=0.02).bfloat16()
    return adapters


def _write_vae(base: Path, config: VAEConfig) -> None:
    with torch.device("meta"):
        vae = VideoVAE(config)
    torch.save(_random_weights(vae), base / VAE_FILE)
    _write_json((base / VAE_FILE).with_suffix(".json"), asdict(config))


def _write_text_encoder(base: Path, config: TextEncoderConfig) -> None:
    with torch.device("meta"):
        encoder = TextEncoder(config)
    weights = _random_weights(encoder)
    torch.save({published_name(name): tensor.bfloat16() for name, tensor in weights.items()}, base / TEXT_ENCODER_FILE)
    _write_json((base / TEXT_ENCODER_FILE).with_suffix(".json"), asdict(config))


def _write_speech_encoder(folder: Path, sizes: Mapping[str, Any]) -> None:
    config = speech_config(sizes)
    with torch.device("meta"):
        encoder = SpeechEncoder(config)
    folder.mkdir()
    save_file(_random_weights(encoder), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config.to_dict())


def _write_tokenizer(path: Path, vocab_size: int) -> None:
    """Trains a small Unigram tokenizer, with the conventions of the published one, on the built-in word list."""
    words = resources.files(__package__).joinpath("tiny_words.txt").read_text(encoding="utf-8").split()
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL_TOKENS), unk_token=_SPECIAL_TOKENS[-1], show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.model = _canonical(tokenizer)
    end = "</s>", tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[end])
    path.parent.mkdir(parents=True)
    tokenizer.save(str(path))


def _canonical(trained: Tokenizer) -> Unigram:
    """Orders and rounds the pieces: training sums in no fixed order, so its last digits differ between runs."""
    vocab = json.loads(trained.to_str())["model"]["vocab"]
    pieces = [(piece, round(score, 2)) for piece, score in vocab if piece not in _SPECIAL_TOKENS]
    pieces.sort(key=lambda scored: (-scored[1], scored[0]))
    special = [(token, 0.0) for token in _SPECIAL_TOKENS]
    return Unigram(special + pieces, unk_id=_SPECIAL_TOKENS.index("<unk>"))


def _random_weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: _initial(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()}


def _initial(name: str, shape: tuple[int, ...]) -> Tensor:
    """Returns weights that keep activations near unit size: 1 / sqrt(fan-in), norms 1, biases small."""
    leaf = name.rpartition(".")[2]
    if leaf == "gamma" or ("norm" in name and leaf == "weight"):
        return torch.ones(shape)
    if name == "casual_audio_encoder.weights":
        return torch.full(shape, 0.01)
    if leaf == "bias":
        return _random(name, shape, scale=0.02)
    if leaf == "modulation":
        return _random(name, shape, scale=shape[-1] ** -0.5)
    fan_in = math.prod(shape[1:])
    return _random(name, shape, scale=fan_in**-0.5)


def _random(name: str, shape: tuple[int, ...], *, scale: float) -> Tensor:
    """Draws from a generator of the tensor's own, so that no weight depends on the order of the others."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator) * scale


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
