"""Metrics of a run on Ray: gauges that Prometheus finds on the metrics port of the driver's node, with `ray_`."""

from __future__ import annotations

from ray.util.metrics import Gauge

from serve_app.bulk.row import Document


class RunMetrics:
    """Shows the state of a run; nothing is exported where no Ray is connected."""

    def __init__(self) -> None:
        self._rows = Gauge("avatar_bulk_rows", description="Rows by state", tag_keys=("state",))
        self._lanes = Gauge("avatar_bulk_lanes", description="Lanes by condition", tag_keys=("condition",))
        self._gpu_s = Gauge("avatar_bulk_gpu_seconds", description="GPU seconds by use", tag_keys=("use",))
        self._conditions: set[str] = set()

    def show(self, state: Document) -> None:
        """Takes over what progress.json tells."""
        for name, count in state["rows"].items():
            self._rows.set(count, {"state": name})
        for use, seconds in state["gpu_s"].items():
            self._gpu_s.set(seconds, {"use": use})
        now = [lane["condition"] for lane in state["lanes"]]
        self._conditions |= set(now)
        for condition in self._conditions:
            self._lanes.set(now.count(condition), {"condition": condition})
