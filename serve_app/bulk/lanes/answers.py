"""Answers: what a lane reported, so that an order that comes twice is obeyed once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from serve_app.bulk.lanes.messages import RowOrder, RowReport


class Answers:
    """The reports of orders, also of those at work; any number of threads ask."""

    def __init__(self) -> None:
        self._reports: dict[tuple[int, int], Future[RowReport]] = {}
        self._lock = threading.Lock()

    def of(self, order: RowOrder, obey: Callable[[RowOrder], RowReport]) -> RowReport:
        """Obeys a new order, waits for the report of one that came before; raises what obeying it raised."""
        with self._lock:
            report = self._reports.get((order.seq, order.attempt))
            is_new = report is None
            if report is None:
                report = self._reports[order.seq, order.attempt] = Future()
        if is_new:
            try:
                report.set_result(obey(order))
            except BaseException as error:
                report.set_exception(error)
        return report.result()

    def forget(self, seq: int, attempt: int) -> None:
        """Lets go of a report that has arrived."""
        with self._lock:
            self._reports.pop((seq, attempt), None)

    @property
    def orders(self) -> tuple[tuple[int, int], ...]:
        """The orders that are known, by row and attempt."""
        with self._lock:
            return tuple(self._reports)
