"""The file of constants: what is in it, and what may not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import InvalidRequestError
from serve_app.planning.calibration import DEFAULT_FILE, load_calibration


def test_nothing_in_the_file_that_ships_is_measured() -> None:
    shipped = load_calibration()
    assert (shipped.kind, shipped.gpu, shipped.residuals, shipped.step_seconds) == ("analytic", "", (), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guess"}, "kind 'guess' is neither analytic nor measured"),
        ({"gpu": None}, "gpu None is not text"),
        ({"context_bytes": "many"}, "context_bytes 'many' is not a number 0 or more"),
        ({"context_bytes": -1}, "context_bytes -1 is not a number 0 or more"),
        ({"dit_efficiency": 0}, "dit_efficiency 0 is not a number above 0"),
        ({"dit_efficiency": float("nan")}, "dit_efficiency nan is not a number above 0"),
        ({"vae_efficiency": True}, "vae_efficiency True is not a number above 0"),
        ({"dynamic_margin": 0.9}, "dynamic_margin 0.9 is not a number 1 or more"),
        ({"step_seconds": [[0, 1]]}, r"step_seconds 0\.0 is not a number above 0"),
        ({"speed": 1}, "speed is no field of it"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_refused_with_its_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = json.loads(DEFAULT_FILE.read_text(encoding="utf-8"))
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**values, **change}), encoding="utf-8")
    with pytest.raises(InvalidRequestError, match=f"calibration.json is no calibration: {message}; make it with"):
        load_calibration(path)


@pytest.mark.parametrize("text", ["", "[1]", "7", "\x00"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequestError, match="is no calibration"):
        load_calibration(path)
