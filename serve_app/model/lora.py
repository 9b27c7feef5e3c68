"""The distillation LoRA: merged into the base weights once, while they stream by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serve_app.errors import CheckpointError

SCALE = 0.5
"""alpha / rank of the published adapter (64 / 128); the file itself does not say."""

_TARGETS = (".q", ".k", ".v", ".o", ".ffn.0", ".ffn.2")
_PREFIX = "base_model.model."
_SUFFIX_A, _SUFFIX_B = ".lora_A.default.weight", ".lora_B.default.weight"
_MOST_NAMED = 4


def adapted_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Returns the linear layers that the published LoRA adapts, by name: 448 at full size."""
    named = model.named_modules()
    return {name: module for name, module in named if isinstance(module, nn.Linear) and name.endswith(_TARGETS)}


@dataclass(frozen=True)
class Adapters:
    """A checked adapter file: for each target the names of its A and B; `read` fetches one tensor."""

    pairs: Mapping[str, tuple[str, str]]
    read: Callable[[str], Tensor]
    scale: float = SCALE


def check_adapters(model: nn.Module, names: Iterable[str], read: Callable[[str], Tensor]) -> Adapters:
    """Returns the adapters of `model` among the tensors `names` of a LoRA file.

    Names may lack the prefix "base_model.model.". Raises CheckpointError unless there is exactly one A and one B
    for each adapted linear layer: a misnamed key must not be silence.
    """
    found = {name.removeprefix(_PREFIX): name for name in names}
    expected = {f"{target}{suffix}": target for target in adapted_linears(model) for suffix in (_SUFFIX_A, _SUFFIX_B)}
    unknown, missing = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
    if unknown or missing:
        raise CheckpointError(
            f"the LoRA file does not fit the model: {_some('extra', unknown)}{_some('missing', missing)}".rstrip("; "),
            remedy="use the adapter that was published for this model",
        )
    targets = dict.fromkeys(expected.values())
    return Adapters({name: (found[name + _SUFFIX_A], found[name + _SUFFIX_B]) for name in targets}, read)


def merge_lora(weights: Iterable[tuple[str, Tensor]], adapters: Adapters) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights, adapted ones as base + scale * B @ A in float32; one target is in memory at a time.

    Raises CheckpointError for an adapter whose shapes do not fit its weight.
    """
    for name, weight in weights:
        target = name.removesuffix(".weight")
        if target == name or target not in adapters.pairs:
            yield name, weight
            continue
        a_RI, b_OR = (adapters.read(half) for half in adapters.pairs[target])
        if (b_OR.shape[0], a_RI.shape[1]) != weight.shape or a_RI.shape[0] != b_OR.shape[1]:
            raise CheckpointError(
                f"LoRA of {target}: A {list(a_RI.shape)} and B {list(b_OR.shape)} make no weight {list(weight.shape)}",
                remedy="use the adapter that was published for this model",
            )
        yield name, torch.addmm(weight.float(), b_OR.float(), a_RI.float(), alpha=adapters.scale)


def _some(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{kind} {', '.join(names[:_MOST_NAMED])}{more}; "
