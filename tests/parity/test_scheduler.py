"""The Euler flow-match schedule and its step against the reference."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.model.flow_match import euler_schedule, euler_step
from tests.parity.golden import cases, largest_error, load

TOLERANCE = 1e-6

CASES = [(path, row["steps"]) for path in cases("scheduler") for row in load(path).spec["euler"]]


@pytest.mark.parametrize(("path", "steps"), CASES, ids=[f"{path.stem}-{steps}" for path, steps in CASES])
def test_schedule_and_steps_match_the_reference(path: Any, steps: int, record_property: Any) -> None:
    golden = load(path)
    row = next(row for row in golden.spec["euler"] if row["steps"] == steps)
    schedule = euler_schedule(steps, shift=row["shift"])
    assert schedule.timesteps == pytest.approx(row["timesteps"], rel=TOLERANCE)
    assert schedule.sigmas == pytest.approx(row["sigmas"], abs=TOLERANCE)

    latents = golden.tensors[f"euler.{steps}.x0"]
    for step in range(steps):
        velocity = golden.tensors[f"euler.{steps}.v{step}"]
        latents = euler_step(latents, velocity, sigma=schedule.sigmas[step], next_sigma=schedule.sigmas[step + 1])
        error = largest_error(latents, golden.tensors[f"euler.{steps}.x{step + 1}"])
        record_property("latents", error)
        assert error <= TOLERANCE * 10
