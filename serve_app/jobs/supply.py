"""Supply: how much work the groups of a pool can do until a moment, from when each of them is free."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate


class Supply:
    """What groups that become free at `free_at` can do, one job at a time each. Seconds everywhere.

    A job that may start at the latest at s, behind others that need w together, starts in time when w <= by(s),
    whatever groups those others take: were it still waiting at s, all groups would have been busy with them.

    `drift` is the sum of all delays that groups ever had: by(s) falls by no more than drift rises.
    """

    def __init__(self, free_at: Iterable[float], *, drift: float = 0.0) -> None:
        self.free_at = sorted(free_at)
        self.drift = drift
        self._sums = [0.0, *accumulate(self.free_at)]

    def by(self, moment: float) -> float:
        """Returns the work that can be done until `moment`; below zero while no group is free, -inf without any."""
        if not self.free_at:
            return -math.inf
        free = max(1, bisect_right(self.free_at, moment))
        return free * moment - self._sums[free]

    def when(self, work_s: float) -> float:
        """Returns the first moment with by(moment) >= work_s >= 0: by then, a group turns to what follows."""
        for free, next_free in enumerate([*self.free_at[1:], math.inf][: len(self.free_at)], start=1):
            moment = (work_s + self._sums[free]) / free
            if moment <= next_free:
                return moment
        return math.inf
