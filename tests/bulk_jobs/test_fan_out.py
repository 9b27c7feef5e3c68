"""Orders on their way through Ray Data, and what becomes of the way when its queue is lost."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.queue import Queue

from serve_app.bulk.lanes import fan_out
from serve_app.bulk.lanes.fan_out import FanOut
from serve_app.bulk.lanes.messages import RowOrder, RowReport
from tests.bulk.rows import order

WAIT_S = 60.0


@pytest.fixture(autouse=True)
def _cluster(cluster: object) -> None:
    """All tests here need one."""


class Lane:
    """Makes nothing of an order but its report."""

    def render(self, wanted: RowOrder) -> RowReport:
        return RowReport(wanted.seq, wanted.attempt, "a", result={"custom_id": wanted.custom_id})

    def forget(self, seq: int, attempt: int) -> None:
        """See OwnLane."""


def a_lane() -> Any:
    as_remote: Any = ray.remote
    return as_remote(Lane).options(num_cpus=0).remote()


def test_the_queue_of_orders_is_where_the_driver_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def make(*, actor_options: dict[str, Any]) -> Queue:
        asked.append(actor_options)
        return Queue(actor_options=actor_options)

    monkeypatch.setattr(fan_out, "Queue", make)
    with FanOut({"a": a_lane()}, at_once=1) as way:
        way.send("a", order(tmp_path, "row"))
        report = way.reports.get(timeout=WAIT_S)
    assert isinstance(report, RowReport)
    assert report.result == {"custom_id": "row"}
    here = ray.get_runtime_context().get_node_id()
    assert asked == [{"num_cpus": 0, "label_selector": {"ray.io/node-id": here}}]


def test_a_way_whose_queue_is_lost_says_so_and_closes(tmp_path: Path) -> None:
    with FanOut({"a": a_lane()}, at_once=1) as way:
        way.send("a", order(tmp_path, "row"))
        assert isinstance(way.reports.get(timeout=WAIT_S), RowReport)
        ray.kill(way._orders.actor)
        assert isinstance(way.reports.get(timeout=WAIT_S), Exception)
    assert not way._gathering.is_alive()
    with pytest.raises(queue.Empty):
        way.reports.get(timeout=0.1)
