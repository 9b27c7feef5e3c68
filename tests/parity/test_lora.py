"""The merged LoRA against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.errors import CheckpointError
from serve_app.model.config import DiTConfig
from serve_app.model.dit import CausalDiT
from serve_app.model.lora import SCALE, merge_lora
from tests.parity.golden import Golden, cases, largest_error, load, load_weights

TOLERANCE = 1e-6


def _base_model(golden: Golden) -> CausalDiT:
    base = (golden.path.parent / golden.spec["base"]).resolve()
    any_case = next(path for path in cases("dit") if load(path).spec["weights"] == base.name)
    dit = CausalDiT(DiTConfig.from_json(load(any_case).spec["config"]))
    dit.load_state_dict(load_weights(golden, "base"))
    return dit


@pytest.mark.parametrize("path", cases("lora"), ids=lambda path: path.stem)
def test_merged_weights_match_the_reference(path: Path, record_property: Any) -> None:
    golden = load(path)
    assert golden.spec["scale"] == SCALE
    dit = _base_model(golden)
    before = {name: weight.clone() for name, weight in dit.state_dict().items()}
    adapters = {name: tensor for name, tensor in golden.tensors.items() if not name.startswith("merged.")}
    merge_lora(dit, adapters, adapters.__getitem__)
    after = dit.state_dict()
    for name, expected in golden.weights("merged.").items():
        error = largest_error(after[name], expected)
        record_property("merged", error)
        assert error <= TOLERANCE
    assert sum(not torch.equal(before[name], after[name]) for name in before) == golden.spec["changed_weights"]


def test_a_misnamed_adapter_is_an_error() -> None:
    golden = load(cases("lora")[0])
    adapters = {
        name.replace("self_attn.q", "self_attn.query"): tensor
        for name, tensor in golden.tensors.items()
        if not name.startswith("merged.")
    }
    with pytest.raises(CheckpointError, match=r"self_attn\.query"):
        merge_lora(_base_model(golden), adapters, adapters.__getitem__)
