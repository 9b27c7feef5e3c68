"""Incoming: the rows of a folder that is watched, some at a time: the driver has other things to do, too."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator

from serve_app.bulk.manifests.watch import Watch
from serve_app.bulk.row import BadRow, Entry
from serve_app.errors import StorageError

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 32
"""Their inputs are read within seconds."""


class Incoming:
    """Draws rows from a watch, and lets it look again when nothing is left of its last look."""

    def __init__(self, watch: Watch, *, every_s: float) -> None:
        """Between two looks are at least `every_s`."""
        self._watch, self._every_s = watch, every_s
        self._found: Iterator[Entry | BadRow] = iter(())
        self._looked_at = -math.inf

    def some(self) -> list[Entry | BadRow]:
        """Returns rows that are new, a few; none where the folder does not answer: a later look finds them."""
        rows, now = self.known(), time.monotonic()
        if rows or now - self._looked_at < self._every_s:
            return rows
        self._looked_at, self._found = now, self._watch.poll()
        return self.known()

    def known(self) -> list[Entry | BadRow]:
        """Returns a few of what the last look found."""
        rows: list[Entry | BadRow] = []
        try:
            rows.extend(itertools.islice(self._found, ROWS_AT_ONCE))
        except StorageError as error:
            log.warning("watched folder not read", extra={"error": str(error)})
        return rows

    def left(self) -> list[BadRow]:
        """Returns what never became complete; see `Watch`."""
        return self._watch.left()
