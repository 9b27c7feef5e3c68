"""The distillation LoRA: merged into the base weights once, at load."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from serve_app.errors import CheckpointError

SCALE = 0.5
"""alpha / rank of the published adapter (64 / 128); the file itself does not say."""

_PREFIX = "base_model.model."
_SUFFIXES = (".lora_A.default.weight", ".lora_B.default.weight")


def merge_lora(model: nn.Module, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
    """Adds scale * B @ A to every targeted linear weight of `model`, in float32, one target at a time.

    `names` lists the adapter's tensors, `read` fetches one. Raises CheckpointError for a name that is not an
    adapter of a linear layer of `model`, for a half pair and for shapes that do not fit.
    """
    pairs = _pairs(names)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(target for target in pairs if target not in linears)
    if unknown:
        raise CheckpointError(
            f"the LoRA file adapts {len(unknown)} modules that are no linear layers of the model, first {unknown[0]}",
            remedy="use the adapter that was published for this model",
        )
    for target, (name_a, name_b) in pairs.items():
        _merge(linears[target], target, read(name_a), read(name_b))


def _pairs(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name in names:
        suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
        if suffix is None:
            raise CheckpointError(
                f"the LoRA file holds {name}, which is no adapter weight",
                remedy=f"names must end with {_SUFFIXES[0]} or {_SUFFIXES[1]}",
            )
        found.setdefault(name.removesuffix(suffix).removeprefix(_PREFIX), {})[suffix] = name
    for target, halves in found.items():
        if len(halves) != len(_SUFFIXES):
            raise CheckpointError(f"the LoRA file holds half a pair for {target}", remedy="download the file again")
    return {target: (halves[_SUFFIXES[0]], halves[_SUFFIXES[1]]) for target, halves in found.items()}


def _merge(linear: nn.Linear, target: str, a_RI: Tensor, b_OR: Tensor) -> None:
    expected = tuple(linear.weight.shape)
    if (b_OR.shape[0], a_RI.shape[1]) != expected or a_RI.shape[0] != b_OR.shape[1]:
        raise CheckpointError(
            f"LoRA of {target}: A {tuple(a_RI.shape)} and B {tuple(b_OR.shape)} do not make a weight {expected}",
            remedy="use the adapter that was published for this model",
        )
    weight = linear.weight
    with torch.no_grad():
        delta = SCALE * (b_OR.to(weight.device, torch.float32) @ a_RI.to(weight.device, torch.float32))
        weight.copy_(weight.float() + delta)
