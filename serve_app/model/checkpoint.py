"""Checkpoint folders in the published layout: finding the files, streaming tensors into modules.

    <checkpoint>/Wan2.2-S2V-14B/   config.json, diffusion_pytorch_model-*.safetensors + index,
                                   models_t5_umt5-xxl-enc-bf16.pth, Wan2.1_VAE.pth,
                                   google/umt5-xxl/tokenizer.json, wav2vec2-large-xlsr-53-english/
    <checkpoint>/LiveAvatar/       liveavatar.safetensors (the distillation LoRA)

A `.json` beside a `.pth` describes a network of other than the published size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import Wav2Vec2Config

from serve_app.errors import CheckpointError
from serve_app.model import speech_encoder, text_encoder
from serve_app.model.config import DiTConfig, TextEncoderConfig, VAEConfig
from serve_app.model.dit import CausalDiT
from serve_app.model.lora import check_adapters, merge_lora
from serve_app.model.speech_encoder import SpeechEncoder
from serve_app.model.text_encoder import PromptTokenizer, TextEncoder
from serve_app.model.vae import VideoVAE

BASE_FOLDER = "Wan2.2-S2V-14B"
LORA_FILE = "LiveAvatar/liveavatar.safetensors"
DIT_CONFIG = "config.json"
DIT_STEM = "diffusion_pytorch_model"
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE = "Wan2.1_VAE.pth"
TOKENIZER_FILE = "google/umt5-xxl/tokenizer.json"
SPEECH_FOLDER = "wav2vec2-large-xlsr-53-english"

_MOST_NAMED = 8
_Module = TypeVar("_Module", bound=nn.Module)
NamedTensors = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class Placement:
    """Where weights go and in which dtype."""

    device: torch.device
    dtype: torch.dtype


def default_placement() -> Placement:
    """Returns a GPU and bfloat16 where there is one, else the CPU and float32."""
    if torch.cuda.is_available():
        return Placement(torch.device("cuda"), torch.bfloat16)
    return Placement(torch.device("cpu"), torch.float32)


class Checkpoint:
    """One checkpoint folder; each `load_*` reads only the files of its network."""

    def __init__(self, root: Path) -> None:
        """Raises CheckpointError when `root` is no such folder."""
        self.base = root / BASE_FOLDER
        self.lora = root / LORA_FILE
        if not (self.base / DIT_CONFIG).is_file():
            raise CheckpointError(
                f"{root} holds no {BASE_FOLDER}/{DIT_CONFIG}",
                remedy=f"name the folder that contains {BASE_FOLDER}/ and LiveAvatar/",
                param="checkpoint",
            )

    def load_dit(self, placement: Placement) -> CausalDiT:
        """Loads the transformer, merging the LoRA when the folder has one."""
        config = DiTConfig.from_json(_read_json(self.base / DIT_CONFIG))
        dit = _build(lambda: CausalDiT(config))
        tensors = _read_shards(self.base)
        if not self.lora.is_file():
            return fill(dit, tensors, placement, source=str(self.base))
        with _opened(self.lora) as file:
            merged = merge_lora(tensors, check_adapters(dit, file.keys(), file.get_tensor))
            return fill(dit, merged, placement, source=str(self.base))

    def load_vae(self, placement: Placement) -> VideoVAE:
        path = self.base / VAE_FILE
        config = VAEConfig.from_json(_sidecar(path))
        return fill(_build(lambda: VideoVAE(config)), _read_pth(path), placement, source=str(path)).tuned()

    def load_text_encoder(self, placement: Placement) -> TextEncoder:
        path = self.base / TEXT_ENCODER_FILE
        config = TextEncoderConfig.from_json(_sidecar(path))
        tensors = text_encoder.to_transformers_names(_read_pth(path))
        return fill(_build(lambda: TextEncoder(config)), tensors, placement, source=str(path))

    def load_tokenizer(self, text_len: int) -> PromptTokenizer:
        path = self.base / TOKENIZER_FILE
        if not path.is_file():
            raise CheckpointError(f"{path} is missing", remedy="download the tokenizer folder of the checkpoint again")
        return PromptTokenizer(path, text_len)

    def load_speech_encoder(self, placement: Placement) -> SpeechEncoder:
        folder = self.base / SPEECH_FOLDER
        config = Wav2Vec2Config.from_dict(_read_json(folder / "config.json"))
        tensors = speech_encoder.to_transformers_names(_read_speech_weights(folder))
        return fill(_build(lambda: SpeechEncoder(config)), tensors, placement, source=str(folder))


def _build(make: Callable[[], _Module]) -> _Module:
    """Builds a module without memory; `fill` brings every tensor."""
    with torch.device("meta"):
        return make().eval().requires_grad_(False)


def fill(module: _Module, tensors: NamedTensors, placement: Placement, *, source: str) -> _Module:
    """Streams tensors into `module`, casting and moving one at a time.

    Raises CheckpointError that names every missing, extra and misshapen tensor (the first of many).
    """
    expected = dict(module.named_parameters())
    problems: list[str] = []
    filled: set[str] = set()
    for name, tensor in tensors:
        if name not in expected:
            problems.append(f"extra {name}")
        elif tensor.shape != expected[name].shape:
            problems.append(f"{name} has shape {list(tensor.shape)}, not {list(expected[name].shape)}")
        else:
            _assign(module, name, tensor.to(placement.device, placement.dtype))
        filled.add(name)
    problems += [f"missing {name}" for name in expected if name not in filled]
    if problems:
        shown = "; ".join(problems[:_MOST_NAMED])
        more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise CheckpointError(
            f"{source} does not fit the model: {shown}{more}", remedy="download it again, or check its config.json"
        )
    return module


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def _read_shards(folder: Path) -> Iterator[tuple[str, Tensor]]:
    index = folder / f"{DIT_STEM}.safetensors.index.json"
    sharded = _read_json(index)["weight_map"].values() if index.is_file() else [f"{DIT_STEM}.safetensors"]
    for file in sorted(set(sharded)):
        yield from _read_safetensors(folder / file)


def _read_speech_weights(folder: Path) -> NamedTensors:
    current, older = folder / "model.safetensors", folder / "pytorch_model.bin"
    return _read_pth(older) if older.is_file() and not current.is_file() else _read_safetensors(current)


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118  (the file is no mapping)
            yield name, file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    _require(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise _damaged(path) from error


def _read_pth(path: Path) -> NamedTensors:
    """Maps the file into memory; only tensors are unpickled, never code."""
    _require(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise _damaged(path) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise _damaged(path)
    return tensors.items()


def _sidecar(path: Path) -> dict[str, Any]:
    described = path.with_suffix(".json")
    return _read_json(described) if described.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    _require(path)
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(values, dict):
        raise _damaged(path)
    return values


def _require(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", remedy="download the checkpoint folder again")


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or not what its name says", remedy="download it again")
