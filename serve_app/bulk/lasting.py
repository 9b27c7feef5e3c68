"""Lasting: how long something has been so, as a driver sees it that may be held up itself."""

from __future__ import annotations

_MOST_GAP_S = 5.0


class Lasting:
    """Adds up the time between looks at which something was so; of a gap between two looks only a little counts.

    Storage that is slow, or a stopped process, keeps a driver from looking: for that time it can blame nobody.
    """

    def __init__(self) -> None:
        self._looked_at: float | None = None
        self._seconds = 0.0

    def look(self, *, is_so: bool, now: float) -> float:
        """Returns for how many seconds it has been so without a break."""
        if not is_so:
            self._looked_at, self._seconds = None, 0.0
            return 0.0
        if self._looked_at is not None:
            self._seconds += min(now - self._looked_at, _MOST_GAP_S)
        self._looked_at = now
        return self._seconds
