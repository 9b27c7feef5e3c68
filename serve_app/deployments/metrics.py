"""Metrics on Ray: each becomes a Prometheus series on the metrics port of its node, with the prefix `ray_`."""

from __future__ import annotations

from typing import Any

from ray.serve import metrics as serve_metrics

from serve_app.metrics import Metric

_LABELS: dict[Metric, Any] = {
    Metric.QUEUE_DEPTH: ("pool",),
    Metric.GROUPS: ("pool", "condition"),
    Metric.ADMISSIONS: ("decision",),
    Metric.JOBS_ENDED: ("state",),
    Metric.WAIT_SECONDS: ("pool",),
    Metric.FIRST_FRAME_SECONDS: ("pool",),
    Metric.FRAMES_PER_SECOND: ("pool",),
    Metric.GROUP_RESTARTS: ("pool",),
}
_GAUGES = (Metric.QUEUE_DEPTH, Metric.GROUPS)
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0]
_FRAMES_PER_SECOND = [0.3, 1.0, 3.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 50.0, 100.0]
_BORDERS = {
    Metric.WAIT_SECONDS: _SECONDS,
    Metric.FIRST_FRAME_SECONDS: _SECONDS,
    Metric.FRAMES_PER_SECOND: _FRAMES_PER_SECOND,
}


class RayMetrics:
    """Metrics of one replica of a Serve deployment."""

    def __init__(self) -> None:
        self._counters: dict[Metric, serve_metrics.Counter] = {}
        self._gauges: dict[Metric, serve_metrics.Gauge] = {}
        self._histograms: dict[Metric, serve_metrics.Histogram] = {}
        for metric, labels in _LABELS.items():
            summary = str(metric).replace("_", " ")
            if metric in _BORDERS:
                borders = _BORDERS[metric]
                self._histograms[metric] = serve_metrics.Histogram(metric.value, summary, borders, labels)
            elif metric in _GAUGES:
                self._gauges[metric] = serve_metrics.Gauge(metric.value, summary, labels)
            else:
                self._counters[metric] = serve_metrics.Counter(metric.value, summary, labels)

    def count(self, metric: Metric, **labels: str) -> None:
        """See Metrics."""
        self._counters[metric].inc(1, tags=labels)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """See Metrics."""
        self._histograms[metric].observe(value, tags=labels)

    def show(self, metric: Metric, value: float, **labels: str) -> None:
        """See Metrics."""
        self._gauges[metric].set(value, tags=labels)
