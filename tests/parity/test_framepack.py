"""Packed motion tokens and their rotary tables against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve_app.model.reference import FramePacker, motion_table
from tests.parity.golden import cases, largest_error, load

TOKEN_TOLERANCE = 1e-5
TABLE_TOLERANCE = 1e-6

CASES = [(path, case["case"]) for path in cases("framepack") for case in load(path).spec["cases"]]


@pytest.mark.parametrize(("path", "number"), CASES, ids=[f"{path.stem}-{number}" for path, number in CASES])
def test_tokens_and_tables_match_the_reference(path: Any, number: int, record_property: Any) -> None:
    golden = load(path)
    config = golden.spec["config"]
    case = next(case for case in golden.spec["cases"] if case["case"] == number)
    weights = golden.weights()
    packer = FramePacker(weights["proj.weight"].shape[1], config["inner_dim"], drop_mode=case["drop_mode"])
    packer.load_state_dict(weights)
    with torch.inference_mode():
        tokens = packer(golden.tensors[case["input_tensor"]], add_last_motion=case["add_last_motion"])
    error = largest_error(tokens, golden.tensors[f"c{number}.out"])
    record_property("tokens", error)
    assert error <= TOKEN_TOLERANCE

    for precision, suffix in (("float16", ""), ("float64", "_exact")):
        table = motion_table(
            case["h"],
            case["w"],
            head_dim=config["inner_dim"] // config["num_heads"],
            precision=precision,  # type: ignore[arg-type]
            device=torch.device("cpu"),
            drop_mode=case["drop_mode"],
            add_last_motion=case["add_last_motion"],
        )
        assert largest_error(table.cos, golden.tensors[f"c{number}.rope_real{suffix}"]) <= TABLE_TOLERANCE
        assert largest_error(table.sin, golden.tensors[f"c{number}.rope_imag{suffix}"]) <= TABLE_TOLERANCE
