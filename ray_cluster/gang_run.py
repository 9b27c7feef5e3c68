"""Waits for calls on the ranks of a gang: to start them, and to run one task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from ray_cluster.errors import RankFailedError
from ray_cluster.gang_watch import GangWatch, root_cause
from ray_cluster.raised import Raised

POLL_S = 0.2
SETTLE_S = 0.5
"""After an exception, how long its true reason may still come: a dead neighbour is told of a moment later."""
TRANSFER_S = 60.0
"""How long a finished result may travel between nodes."""

END = object()
"""What RankCalls.take answers after the last result."""

IsOver = Callable[[], RankFailedError | None]
"""Answers an error once something took too long; asked several times a second."""


class RankCalls:
    """Calls that are under way on ranks, and perhaps a stream of results from one of them.

    Any failure, of a call or told by the watch, ends the gang and is raised as RankFailedError.
    """

    def __init__(self, watch: GangWatch, calls: Mapping[int, Any], *, stream: tuple[int, Any] | None = None) -> None:
        self._watch = watch
        self._rank_of = {call: rank for rank, call in calls.items()}
        self._answers: dict[int, Any] = {}
        self._failures: list[tuple[RankFailedError, float]] = []
        self._output_rank = stream[0] if stream else 0
        self._stream: Any = stream[1] if stream else None

    def answers(self, *, is_over: IsOver) -> dict[int, Any]:
        """Waits for every call; returns the answers by rank."""
        while self._rank_of:
            self._wait(POLL_S)
            self._raise_failure(is_over)
        self._raise_failure(is_over)
        return self._answers

    def take(self, *, is_over: IsOver) -> Any:  # noqa: ANN401
        """Waits for the next result, or END."""
        while self._stream is not None:
            if self._wait(POLL_S):
                result = self._next()
                if not self._failures:
                    return result
            self._raise_failure(is_over)
        return END

    def _next(self) -> Any:  # noqa: ANN401
        """Returns the result that the stream has, or END; books a failure."""
        try:
            result = ray.get(next(self._stream), timeout=TRANSFER_S)
        except StopIteration:
            self._stream = None
            return END
        except RayError as error:
            self._stream = None
            self._book_loss(self._output_rank, error)
            return END
        if isinstance(result, Raised):
            self._stream = None
            self._book_raised(self._output_rank, result)
        return result

    def _wait(self, timeout_s: float) -> bool:
        """Waits for whatever comes first and books it; returns whether the stream has something."""
        waiting = [*self._rank_of, *([] if self._stream is None else [self._stream])]
        ready, _ = ray.wait(waiting, timeout=timeout_s)
        for call in ready:
            if call is not self._stream:
                self._book(call)
        return self._stream is not None and self._stream in ready

    def _book(self, call: Any) -> None:  # noqa: ANN401
        rank = self._rank_of.pop(call)
        try:
            answer = ray.get(call)
        except RayError as error:
            self._book_loss(rank, error)
            return
        if isinstance(answer, Raised):
            self._book_raised(rank, answer)
        else:
            self._answers[rank] = answer

    def _book_raised(self, rank: int, raised: Raised) -> None:
        self._failures.append((self._watch.raised(rank, raised), raised.at))

    def _book_loss(self, rank: int, error: RayError) -> None:
        self._failures.append((self._watch.lost(rank, error), time.time()))

    def _raise_failure(self, is_over: IsOver) -> None:
        """Raises what failed, if anything; a first exception lets the neighbours tell theirs before."""
        if self._failures:
            self._settle()
            errors, raised_at = zip(*self._failures, strict=True)
            raise self._watch.fail(root_cause(errors, raised_at))
        failure = self._watch.failure or (is_over() if self._rank_of or self._stream is not None else None)
        if failure is not None:
            raise self._watch.fail(failure)

    def _settle(self) -> None:
        deadline = time.monotonic() + SETTLE_S
        while (self._rank_of or self._stream is not None) and time.monotonic() < deadline:
            if self._watch.failure is not None:
                return
            if self._wait(POLL_S):
                self._next()
