"""The noise schedule for every allowed number of steps."""

from __future__ import annotations

from itertools import pairwise

import pytest

from serve_app.model.flow_match import euler_schedule


@pytest.mark.parametrize("steps", range(1, 11))
def test_noise_falls_from_pure_to_none(steps: int) -> None:
    schedule = euler_schedule(steps)
    assert schedule.steps == range(steps)
    assert len(schedule.sigmas) == steps + 1
    assert schedule.sigmas[0] == 1.0
    assert schedule.sigmas[-1] == 0.0
    assert all(later < earlier for earlier, later in pairwise(schedule.sigmas))
