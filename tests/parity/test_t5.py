"""The text encoder against the reference, through the published parameter names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve_app.model.checkpoint import fill
from serve_app.model.config import TextEncoderConfig
from serve_app.model.text_encoder import TextEncoder, to_transformers_names
from tests.parity.golden import CPU_FLOAT32, cases, largest_error, load

TOLERANCE = 6e-5

CASES = [(path, case["case"]) for path in cases("t5") for case in load(path).spec["cases"]]


@pytest.mark.parametrize(("path", "number"), CASES, ids=[f"{path.stem}-{number}" for path, number in CASES])
def test_context_matches_the_reference(path: Any, number: int, record_property: Any) -> None:
    golden = load(path)
    encoder = TextEncoder(TextEncoderConfig.from_json(golden.spec["config"])).eval()
    fill(encoder, to_transformers_names(golden.weights().items()), CPU_FLOAT32, source=path.name)
    case = next(case for case in golden.spec["cases"] if case["case"] == number)
    for sample, valid in enumerate(case["valid"]):
        ids = golden.tensors[f"c{number}.ids"][sample]
        assert int(golden.tensors[f"c{number}.mask"][sample].sum()) == valid
        with torch.inference_mode():
            context = encoder(ids[:valid])
        error = largest_error(context, golden.tensors[f"c{number}.ctx{sample}"])
        record_property("context", error)
        assert error <= TOLERANCE
