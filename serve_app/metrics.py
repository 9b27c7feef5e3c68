"""What is measured while the service runs: names, units and labels; who exports them stands elsewhere."""

from __future__ import annotations

import enum
from typing import Protocol


class Metric(enum.StrEnum):
    """Names as Prometheus will show them, behind the exporter's prefix."""

    QUEUE_DEPTH = "avatar_queue_depth"
    """Jobs that wait, by pool."""
    GROUPS = "avatar_groups"
    """Groups, by pool and condition."""
    ADMISSIONS = "avatar_admissions_total"
    """Requests, by decision: admitted, or the reason of a refusal."""
    JOBS_ENDED = "avatar_jobs_ended_total"
    """Jobs, by how they ended."""
    WAIT_SECONDS = "avatar_wait_seconds"
    """From admission to the start of an attempt, by pool."""
    FIRST_FRAME_SECONDS = "avatar_first_frame_seconds"
    """From the order to the first block in storage, by pool."""
    FRAMES_PER_SECOND = "avatar_frames_per_second"
    """Frames of a finished video per second of its render, by pool."""
    GROUP_RESTARTS = "avatar_group_restarts_total"
    """Gangs that had to be built again, by pool."""


class Metrics(Protocol):
    """Takes values; never raises and never waits."""

    def count(self, metric: Metric, **labels: str) -> None:
        """Adds one."""
        ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Adds a value to a distribution."""
        ...

    def show(self, metric: Metric, value: float, **labels: str) -> None:
        """Sets what something is now."""
        ...


class NoMetrics:
    """Metrics of whoever exports none."""

    def count(self, metric: Metric, **labels: str) -> None:
        """Forgets it."""

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Forgets it."""

    def show(self, metric: Metric, value: float, **labels: str) -> None:
        """Forgets it."""
