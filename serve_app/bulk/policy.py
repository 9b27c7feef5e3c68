"""When a row is tried again, when it is left alone, and when the whole job pauses. Pure: clock and chance come in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from serve_app.bulk.outcomes import Fault, RowError

_JITTER = 0.25
_OF_THE_SYSTEM = (Fault.INFRA, Fault.MODEL, Fault.OUTPUT)
"""On a disk that is full every row would be rendered for nothing, as often as it may."""


@dataclass(frozen=True)
class RetryPolicy:
    """At most `max_attempts`, `first_s` * 2^k apart; a row that brought down so many groups is left alone."""

    max_attempts: int = 3
    first_s: float = 10.0
    max_brought_down: int = 2

    def delay_s(self, error: RowError, *, attempt: int, brought_down: int, chance: float) -> float | None:
        """Returns how long to wait before the next attempt, None for no other.

        `attempt` has just failed; `brought_down` groups failed under this row so far; `chance` is from 0 to 1.
        """
        if not error.is_retryable or attempt >= self.max_attempts or self.is_left_alone(brought_down):
            return None
        return float(self.first_s * 2.0 ** (attempt - 1) * (1 - _JITTER + 2 * _JITTER * chance))

    def is_left_alone(self, brought_down: int) -> bool:
        """Whether so many groups failed under a row that it is not tried on another one."""
        return brought_down >= self.max_brought_down


@dataclass
class Breaker:
    """Opens when more than `share` of the last `window` attempts failed through the system's fault, not the row's."""

    window: int = 20
    share: float = 0.2
    _failed: deque[bool] = field(init=False)

    def __post_init__(self) -> None:
        self._failed = deque(maxlen=self.window)

    def note(self, error: RowError | None) -> None:
        """Takes an attempt into account; None: it succeeded."""
        self._failed.append(error is not None and error.fault in _OF_THE_SYSTEM)

    @property
    def num_failed(self) -> int:
        return sum(self._failed)

    @property
    def is_open(self) -> bool:
        return len(self._failed) >= self.window and self.num_failed > self.share * len(self._failed)
