"""Checkpoint folders in the published layout: transformer and VAE, and streaming tensors into modules.

    <checkpoint>/Wan2.2-S2V-14B/   config.json, diffusion_pytorch_model-*.safetensors + index,
                                   models_t5_umt5-xxl-enc-bf16.pth, Wan2.1_VAE.pth,
                                   google/umt5-xxl/tokenizer.json, wav2vec2-large-xlsr-53-english/
    <checkpoint>/LiveAvatar/       liveavatar.safetensors (the distillation LoRA)

Any `.pth` may also be a `.safetensors` of the same name. A `.json` of the same name describes a network of other
than the published size. "lora_merged" in config.json says that the LoRA is in the weights already.
The encoders of text and speech are in `full_checkpoint`: their library takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from serve_app.errors import CheckpointError
from serve_app.model.config import DiTConfig, VAEConfig
from serve_app.model.dit import CausalDiT
from serve_app.model.lora import check_adapters, merge_lora
from serve_app.model.tensor_files import NamedTensors, opened, read_json, read_tensors
from serve_app.model.vae import VideoVAE

BASE_FOLDER = "Wan2.2-S2V-14B"
LORA_FILE = "LiveAvatar/liveavatar.safetensors"
LORA_MERGED = "lora_merged"
DIT_CONFIG = "config.json"
DIT_STEM = "diffusion_pytorch_model"
VAE_FILE = "Wan2.1_VAE.pth"

_MOST_NAMED = 50
_Module = TypeVar("_Module", bound=nn.Module)
_Built = TypeVar("_Built", bound=nn.Module)


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


Keep = Callable[[nn.Parameter, Tensor], Tensor]
"""(parameter of the module, tensor of the file) -> what this process keeps of the tensor."""


def keep_whole(_: nn.Parameter, tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, eq=False)
class Network(Generic[_Module]):
    """One network of a checkpoint, not loaded yet: the module on the meta device and the tensors that fill it.

    `file` is where the published layout keeps it; `tensors` bear the module's names and can be taken once.
    """

    file: Path
    module: _Module
    tensors: NamedTensors
    published_name: Callable[[str], str] = str
    """What the published files call a parameter of the module."""

    def load(self, placement: Placement, *, keep: Keep = keep_whole) -> _Module:
        """Fills the module; raises CheckpointError that names every tensor that does not fit."""
        return fill(self.module, self.tensors, placement, source=str(self.file), keep=keep)


class Checkpoint:
    """What every rank may need of a checkpoint folder; each network reads only its own files."""

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

    @property
    def has_merged_lora(self) -> bool:
        """Whether the weights of the transformer say that the LoRA is in them."""
        return bool(read_json(self.base / DIT_CONFIG).get(LORA_MERGED))

    def dit(self) -> Network[CausalDiT]:
        """The transformer, the LoRA merged into it."""
        config = DiTConfig.from_json(read_json(self.base / DIT_CONFIG))
        dit = on_meta(lambda: CausalDiT(config))
        return Network(self.base / f"{DIT_STEM}.safetensors", dit, self._dit_tensors(dit))

    def vae(self) -> Network[VideoVAE]:
        path = self.base / VAE_FILE
        config = VAEConfig.from_json(described(path))
        return Network(path, on_meta(lambda: VideoVAE(config)), read_tensors(path))

    def _dit_tensors(self, dit: CausalDiT) -> Iterator[tuple[str, Tensor]]:
        tensors = read_tensors(self.base / f"{DIT_STEM}.safetensors")
        if self.has_merged_lora and self.lora.is_file():
            raise CheckpointError(
                f"{self.lora} would be merged a second time: {self.base} holds merged weights",
                remedy=f"remove {self.lora}",
            )
        if self.has_merged_lora:
            yield from tensors
            return
        # Without the LoRA the model is not distilled: few steps would give a broken picture.
        with opened(self.lora) as file:
            yield from merge_lora(tensors, check_adapters(dit, file.keys(), file.get_tensor))


def fill(
    module: _Built, tensors: NamedTensors, placement: Placement, *, source: str, keep: Keep = keep_whole
) -> _Built:
    """Streams tensors into `module`, casting, cutting and moving one at a time.

    Raises CheckpointError that names every missing, extra and misshapen tensor (the first of many).
    """
    parameters = dict(module.named_parameters())
    placed = {
        name: keep(parameters[name], tensor.to(placement.dtype)).to(placement.device)
        for name, tensor in fitting(module, tensors, source=source)
    }
    module.load_state_dict(placed, strict=False, assign=True)
    return module


def fitting(module: nn.Module, tensors: NamedTensors, *, source: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors that are parameters of `module`; at the end raises CheckpointError if not all fitted."""
    expected = {name: parameter.shape for name, parameter in module.named_parameters()}
    missing = dict.fromkeys(expected)
    problems = []
    for name, tensor in tensors:
        missing.pop(name, None)
        if name not in expected:
            problems.append(f"extra {name}")
        elif tensor.shape != expected[name]:
            problems.append(f"{name} has shape {list(tensor.shape)}, not {list(expected[name])}")
        else:
            yield name, tensor
    problems += [f"missing {name}" for name in missing]
    if problems:
        shown = "; ".join(problems[:_MOST_NAMED])
        more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise CheckpointError(
            f"{source} does not fit the model: {shown}{more}", remedy="download it again, or check its config.json"
        )


def on_meta(make: Callable[[], _Built]) -> _Built:
    """Builds a module that takes no memory."""
    with torch.device("meta"):
        return make().eval().requires_grad_(False)


def described(path: Path) -> dict[str, Any]:
    """Returns what the JSON beside a file says of its network; without one it is of the published size."""
    description = path.with_suffix(".json")
    return read_json(description) if description.is_file() else {}
