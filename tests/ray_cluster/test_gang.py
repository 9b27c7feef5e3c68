"""Gangs that work: order, back-pressure, cancel, and an end in good order."""

from __future__ import annotations

import pytest

from tests.ray_cluster.conftest import MakeGang
from tests.ray_cluster.fake_program import FakeTask


def in_time(_: int) -> float:
    return 20.0


@pytest.mark.parametrize("num_ranks", [1, 4])
def test_results_come_in_order_task_after_task(make_gang: MakeGang, num_ranks: int) -> None:
    gang = make_gang(num_ranks)
    for label in ("a", "b"):
        items = list(gang.run(FakeTask(20, label), item_limit_s=in_time))
        assert [(item.index, item.label) for item in items] == [(index, label) for index in range(20)]
