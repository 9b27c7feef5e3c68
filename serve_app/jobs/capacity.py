"""What there is: pools, groups and queue, as GET /v1/capacity and the metrics tell them."""

from __future__ import annotations

from collections.abc import Iterable

from serve_app.jobs.fleet import Fleet
from serve_app.jobs.job import Document
from serve_app.jobs.ledger import Ledger
from serve_app.jobs.messages import GroupCondition, GroupReport
from serve_app.metrics import Metric, Metrics


def capacity(fleet: Fleet, ledger: Ledger, reports: Iterable[GroupReport], *, is_admitting: bool) -> Document:
    """Returns everything as one JSON object."""
    told = list(reports)
    return {
        "is_admitting": is_admitting,
        "waiting": ledger.num_waiting,
        "pools": [_pool(fleet, ledger, name, [one for one in told if one.pool == name]) for name in fleet.pools],
    }


def show(fleet: Fleet, ledger: Ledger, reports: Iterable[GroupReport], metrics: Metrics) -> None:
    """Sets the gauges."""
    told = list(reports)
    for pool in fleet.pools:
        metrics.show(Metric.QUEUE_DEPTH, ledger.num_waiting_for(pool), pool=pool)
        for condition in GroupCondition:
            count = sum((one.pool, one.condition) == (pool, condition) for one in told)
            metrics.show(Metric.GROUPS, count, pool=pool, condition=condition.value)


def _pool(fleet: Fleet, ledger: Ledger, name: str, reports: Iterable[GroupReport]) -> Document:
    config = fleet.pools[name]
    return {
        "name": name,
        "model": config.model,
        "layout": config.layout,
        "gpu": config.gpu or "cpu",
        "card_bytes": fleet.card_bytes(name),
        "min_groups": config.min_groups,
        "max_groups": config.max_groups,
        "waiting": ledger.num_waiting_for(name),
        "pace": round(fleet.pace.of(name), 3),
        "presets": fleet.table(name),
        "groups": [_group(report) for report in reports],
    }


def _group(report: GroupReport) -> Document:
    return {
        "name": report.group,
        "condition": report.condition.value,
        "job": None if report.run is None else report.run.job_id,
        "restarts": report.num_restarts,
        "reason": report.reason,
        **report.facts,
    }
