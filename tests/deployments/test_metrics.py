"""Every metric that somebody tells can be told with the labels that its name promises."""

from __future__ import annotations

import pytest

from serve_app.deployments.metrics import RayMetrics
from serve_app.jobs.messages import GroupCondition
from serve_app.metrics import Metric


def test_every_metric_takes_its_labels() -> None:
    metrics = RayMetrics()
    metrics.show(Metric.QUEUE_DEPTH, 3, pool="tiny")
    metrics.show(Metric.GROUPS, 1, pool="tiny", condition=GroupCondition.READY.value)
    metrics.count(Metric.ADMISSIONS, decision="admitted")
    metrics.count(Metric.JOBS_ENDED, state="completed")
    metrics.count(Metric.GROUP_RESTARTS, pool="tiny")
    for metric in (Metric.WAIT_SECONDS, Metric.FIRST_FRAME_SECONDS, Metric.FRAMES_PER_SECOND):
        metrics.observe(metric, -0.5, pool="tiny")
    with pytest.raises(ValueError, match="tag"):
        metrics.count(Metric.ADMISSIONS, reason="a label that it does not have")
