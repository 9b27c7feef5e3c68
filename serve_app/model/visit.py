"""Visits: a network that lives on the host computes on another device for the length of a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def run_on(device: torch.device, network: nn.Module, inputs: Tensor, **options: Any) -> Any:  # noqa: ANN401
    """Returns what `network` makes of the inputs; a GPU holds a copy of its weights until then."""
    weights = {name: parameter.to(device, non_blocking=True) for name, parameter in network.named_parameters()}
    return functional_call(network, weights, (inputs.to(device),), options)
