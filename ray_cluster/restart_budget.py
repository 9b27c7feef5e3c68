"""How often a replica group may be rebuilt, and how soon."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    """At most `max_restarts` in any `within_s` seconds.

    The first one of a series comes at once, the second after `backoff_s`, each further one after twice the time.
    """

    max_restarts: int = 3
    within_s: float = 600.0
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_restarts < 0:
            raise ValueError(f"max_restarts {self.max_restarts} is negative; give 0 for none")
        for name in ("within_s", "backoff_s", "max_backoff_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} is no time; give more than 0 seconds")


class RestartBudget:
    """Counts the restarts of one group. `now` is a monotonic clock in seconds."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._spent: deque[tuple[float, str]] = deque()

    def spend(self, reason: str, *, now: float) -> float | None:
        """Books a failure; returns how many seconds to wait before the restart, or None if there is none left."""
        while self._spent and self._spent[0][0] <= now - self._policy.within_s:
            self._spent.popleft()
        self._spent.append((now, reason))
        num_before = len(self._spent) - 1
        if num_before >= self._policy.max_restarts:
            return None
        if num_before == 0:
            return 0.0
        return min(self._policy.backoff_s * 2.0 ** (num_before - 1), self._policy.max_backoff_s)

    def reasons(self) -> tuple[str, ...]:
        """Returns what the failures of late were, oldest first."""
        return tuple(reason for _, reason in self._spent)
