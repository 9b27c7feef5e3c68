"""Units: the parts of the transformer that sharding gathers and offloading streams, one at a time.

A layer, the attention of an audio injector, and an injector's AdaIN map are a unit each, never the rest in one piece:
a unit must be whole while it runs, so the largest of them is what a rank needs beside its own weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import nn

from serve_app.model.dit import CausalDiT


@dataclass(frozen=True, eq=False)
class Unit:
    """A module, and the methods besides `forward` that compute with its weights."""

    module: nn.Module
    other_methods: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in self.module.parameters())


def called_in_order(dit: CausalDiT) -> list[Unit]:
    """Returns the units of one denoising call in the order in which it runs them."""
    units = []
    injectors = dit.audio_injector
    for layer in dit.layers:
        units.append(Unit(layer, ("text_key_values",)))
        if layer.index in injectors.index_of_layer:
            units.append(Unit(injectors.injector[injectors.index_of_layer[layer.index]], ("key_values",)))
    return units


def called_per_block(dit: CausalDiT) -> list[Unit]:
    """Returns the units that only prepare a block."""
    return [Unit(adain) for adain in dit.audio_injector.injector_adain_layers]


def all_units(dit: CausalDiT) -> list[Unit]:
    return [*called_in_order(dit), *called_per_block(dit)]


def around(unit: Unit, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Puts `wrap` around every method of the unit that computes with its weights."""
    for name in ("forward", *unit.other_methods):
        method = getattr(unit.module, name)
        setattr(unit.module, name, wraps(method)(wrap(method)))
