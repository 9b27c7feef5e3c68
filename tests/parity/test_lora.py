"""The merged LoRA against the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.errors import CheckpointError
from serve_app.model.config import DiTConfig
from serve_app.model.dit import CausalDiT
from serve_app.model.lora import check_adapters, merge_lora
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
    dit = _base_model(golden)
    before = {name: weight.clone() for name, weight in dit.state_dict().items()}
    tensors = _adapters(golden)
    adapters = replace(check_adapters(dit, tensors, tensors.__getitem__), scale=golden.spec["scale"])
    after = dict(merge_lora(before.items(), adapters))
    for name, expected in golden.weights("merged.").items():
        error = largest_error(after[name], expected)
        record_property("merged", error)
        assert error <= TOLERANCE
    assert sum(not torch.equal(before[name], after[name]) for name in before) == golden.spec["changed_weights"]


def _adapters(golden: Golden) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in golden.tensors.items() if not name.startswith("merged.")}


def test_a_misnamed_adapter_is_an_error() -> None:
    golden = load(cases("lora")[0])
    misnamed = {name.replace("self_attn.q", "self_attn.query"): t for name, t in _adapters(golden).items()}
    with pytest.raises(CheckpointError, match=r"extra .*self_attn\.query.*missing .*self_attn\.q\."):
        check_adapters(_base_model(golden), misnamed, misnamed.__getitem__)


def test_the_prefix_may_be_missing() -> None:
    golden = load(cases("lora")[0])
    bare = {name.removeprefix("base_model.model."): tensor for name, tensor in _adapters(golden).items()}
    assert len(check_adapters(_base_model(golden), bare, bare.__getitem__).pairs) == len(bare) // 2


def test_shapes_that_do_not_fit_are_an_error() -> None:
    golden = load(cases("lora")[0])
    dit, tensors = _base_model(golden), _adapters(golden)
    name = "base_model.model.blocks.0.ffn.0.lora_A.default.weight"
    tensors[name] = tensors[name][:, :-1]
    adapters = check_adapters(dit, tensors, tensors.__getitem__)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.ffn\.0"):
        dict(merge_lora(dit.state_dict().items(), adapters))
