"""RowLog: what happened in an attempt, line by line, kept in the output folder beside the video."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from serve_app.bulk.lanes.messages import RowOrder, RowReport
from serve_app.bulk.output import RowOutput
from serve_app.errors import AvatarError

log = logging.getLogger(__name__)


class RowLog:
    """The log of one attempt, from its order to its report."""

    def __init__(self, order: RowOrder, *, lane: str, run_id: str) -> None:
        self._order = order
        self._lines: list[str] = []
        self.note(f"{order.custom_id}, attempt {order.attempt} of run {run_id} on {lane}")

    def note(self, line: str) -> None:
        """Adds a line."""
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    def kept(self, output: RowOutput, report: RowReport) -> RowReport:
        """Keeps the log, and returns the report, whose error tells where it is; the row does not fail with it."""
        try:
            log_uri = output.write_log(self._order.attempt, "\n".join(self._lines) + "\n")
        except AvatarError as error:
            log.warning("row log not written", extra={"row": self._order.custom_id, "error": str(error)})
            return report
        return report if report.error is None else replace(report, error=replace(report.error, log_uri=log_uri))
