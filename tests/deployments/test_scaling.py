"""How many groups a pool is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.deployments.scaling import groups_wanted


@pytest.mark.parametrize(
    ("busy", "waiting", "wanted"),
    [
        ([0, 0], [0, 0], 1),
        ([1, 0], [0, 0], 1),
        ([1, 1], [0, 0], 2),
        ([1, 1], [1, 1], 3),
        ([1, 1, 1], [5, 4, 5], 4),
    ],
)
def test_one_group_for_each_job_that_runs_or_waits(busy: list[int], waiting: list[int], wanted: int) -> None:
    told = {"busy": dict(enumerate(busy)), "waiting": dict(enumerate(waiting))}
    context: Any = SimpleNamespace(
        aggregated_metrics=told, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=4
    )
    assert groups_wanted(context) == (wanted, {})


def test_groups_that_have_told_nothing_yet_are_as_many_as_they_must_be() -> None:
    context: Any = SimpleNamespace(
        aggregated_metrics=None, capacity_adjusted_min_replicas=2, capacity_adjusted_max_replicas=4
    )
    assert groups_wanted(context) == (2, {})
