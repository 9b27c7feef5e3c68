"""Demands and what is answered to them: values that admission, ledger and API share.

Moments in the future are told as seconds from now (`_in_s`), so that no clock needs to be agreed on.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.errors import InvalidRequestError, shown
from serve_app.jobs.job import Priority

MAX_DEADLINE_S = 7 * 24 * 3600.0
STANDARD_DEADLINE_S = 2 * 3600.0
INTERACTIVE_FACTOR = 3.0
INTERACTIVE_EXTRA_S = 10.0


@dataclass(frozen=True)
class Demand:
    """What a request asks of the groups.

    `seconds` says by layout how long the video takes on a group that does nothing else; layouts that it does not
    fit are left out. `deadline_s` is the request's own, from now; None: what its class gets.
    """

    seconds: Mapping[str, float]
    priority: Priority = Priority.STANDARD
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        for layout, seconds in self.seconds.items():
            if not 0 < seconds < math.inf:
                raise ValueError(f"{seconds} s on {layout}: a prediction is above 0 and finite")
        if self.deadline_s is not None:
            check_deadline(self.deadline_s)


def check_deadline(deadline_s: float) -> None:
    """Raises InvalidRequestError unless a request may name this deadline."""
    if not 0 < deadline_s <= MAX_DEADLINE_S:
        raise InvalidRequestError(
            f"deadline_s {shown(deadline_s)} is not between 0 and {MAX_DEADLINE_S:.0f} (seven days)",
            remedy="give the seconds from now within which the video is of use, or leave deadline_s out",
            param="deadline_s",
        )


def default_deadline_s(priority: Priority, seconds: float) -> float | None:
    """Returns what a class promises a video that takes `seconds`: the finish, in seconds from now, or nothing."""
    match priority:
        case Priority.INTERACTIVE:
            return INTERACTIVE_FACTOR * seconds + INTERACTIVE_EXTRA_S
        case Priority.STANDARD:
            return max(STANDARD_DEADLINE_S, INTERACTIVE_FACTOR * seconds + INTERACTIVE_EXTRA_S)
        case Priority.BULK:
            return None


@dataclass(frozen=True)
class Margin:
    """How much longer than predicted a job may take before it endangers a promise."""

    ratio: float = 0.05
    per_job_s: float = 1.0

    def charged_s(self, seconds: float) -> float:
        return seconds * (1 + self.ratio) + self.per_job_s


@dataclass(frozen=True)
class Quote:
    """When a video would be done on `layout`: a promise (None for bulk), and what to expect.

    `seconds` is the prediction for it alone, `first_frame_s` for its first block. `position` counts the jobs before it
    on groups of that layout. `rank_bytes` is what each rank needs of its card, which has `card_bytes`.
    """

    layout: str
    seconds: float
    promise_in_s: float | None
    start_in_s: float
    finish_in_s: float
    position: int
    first_frame_s: float | None = None
    rank_bytes: tuple[int, ...] = ()
    card_bytes: int | None = None


@dataclass(frozen=True)
class Admitted:
    """Yes: the promise can be kept along with all others."""

    quote: Quote


class Reason(enum.StrEnum):
    """Why not."""

    NEVER_FITS = "never_fits"
    DEADLINE_TOO_SHORT = "deadline_too_short"
    NO_CAPACITY = "no_capacity"
    NO_GROUP = "no_group"
    QUEUE_FULL = "queue_full"
    HOST_FULL = "host_full"
    DRAINING = "draining"


@dataclass(frozen=True)
class Rejected:
    """No, and why. `retry_after_s`: when the same request will be accepted if nothing else comes; None: not foreseen.

    `figures` are the numbers behind the reason, for people and programs.
    """

    reason: Reason
    message: str
    retry_after_s: float | None = None
    figures: Mapping[str, object] = field(default_factory=dict)


Outcome = Admitted | Rejected


@dataclass(frozen=True)
class Place:
    """Where a waiting job stands: jobs before it, and when to expect it."""

    position: int
    start_in_s: float
    finish_in_s: float
