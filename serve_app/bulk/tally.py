"""Tally: what a run has achieved and spent so far, for progress.json and summary.json."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from serve_app.bulk.lanes.messages import LaneStatus, RowReport
from serve_app.bulk.outcomes import Fault, RowError
from serve_app.bulk.row import Document
from serve_app.jobs.messages import GroupCondition

_SLOWEST = 10
_READY = (GroupCondition.READY, GroupCondition.BUSY)


@dataclass
class Tally:
    """`num_ranks`: GPUs of a group, which may have several lanes. Seconds of groups become GPU seconds at the end."""

    num_ranks: int
    lanes_per_group: int = 1
    started_at: float = field(default_factory=time.time)
    codes: Counter[str] = field(default_factory=Counter)
    useful_s: float = 0.0
    lost_s: float = 0.0
    ready_s: float = 0.0
    video_s: float = 0.0
    predicted_s: float = 0.0
    num_attempts: int = 0
    failed_attempts: Counter[str] = field(default_factory=Counter)
    last_error: Document | None = None
    num_ready: float = 0.0
    """Groups that could work when they were looked at last."""
    _slowest: list[tuple[float, str]] = field(default_factory=list)
    _looked_at: float | None = None

    def count_bad(self, error: RowError) -> None:
        """Counts a row that got no video."""
        self.codes[error.code.value] += 1

    def count(self, report: RowReport, *, predicted_s: float) -> None:
        """Counts an attempt that has ended; one that nobody began, or that was stopped, is none."""
        is_stopped = report.error is not None and report.error.fault is Fault.CANCELLED
        if report.is_begun and not is_stopped:
            self._count_attempt(report.error)
        if report.result is None:
            self.lost_s += report.busy_s
            return
        self.useful_s += report.busy_s
        if report.busy_s:  # else it was there already
            self.predicted_s += predicted_s
        self.video_s += report.result["seconds"]
        heapq.heappush(self._slowest, (report.busy_s, report.result["custom_id"]))
        if len(self._slowest) > _SLOWEST:
            heapq.heappop(self._slowest)

    def _count_attempt(self, error: RowError | None) -> None:
        self.num_attempts += 1
        if error is not None:
            self.failed_attempts[error.code.value] += 1
            self.last_error = error.as_json()

    def look(self, lanes: list[LaneStatus], *, now: float) -> None:
        """Counts the time since the last look for the groups that could work."""
        self.num_ready = sum(lane.condition in _READY for lane in lanes) / self.lanes_per_group
        if self._looked_at is not None:
            self.ready_s += (now - self._looked_at) * self.num_ready
        self._looked_at = now

    def as_json(self) -> Document:
        """Returns the figures; what nothing is known of yet is null."""
        gpu_hours = (self.useful_s + self.lost_s) * self.num_ranks / 3600
        told: dict[str, Any] = {
            "elapsed_s": round(time.time() - self.started_at, 1),
            "errors_by_code": dict(self.codes),
            "attempts": self.num_attempts,
            "failed_attempts_by_code": dict(self.failed_attempts),
            "last_error": self.last_error,
            "gpu_s": {
                "useful": self._gpu_s(self.useful_s),
                "retried": self._gpu_s(self.lost_s),
                "idle": self._gpu_s(max(0.0, self.ready_s - self.useful_s - self.lost_s)),
            },
            "video_s": round(self.video_s, 2),
            "video_s_per_gpu_hour": round(self.video_s / gpu_hours, 1) if gpu_hours else None,
            "predicted_s": round(self.predicted_s, 1),
            "actual_s": round(self.useful_s, 1),
            "slowest_rows": [
                {"custom_id": name, "seconds": round(seconds, 1)} for seconds, name in sorted(self._slowest)[::-1]
            ],
        }
        return told

    def _gpu_s(self, group_s: float) -> float:
        return round(group_s * self.num_ranks, 1)
