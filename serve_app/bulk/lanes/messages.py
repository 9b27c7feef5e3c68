"""What a bulk driver and its lanes tell each other. A lane makes one row at a time, and reads the next one's inputs.

Every order is known by row and attempt: a lane that gets one twice obeys once and answers the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from serve_app.bulk.outcomes import RowError
from serve_app.bulk.row import Document
from serve_app.jobs.messages import GroupCondition


@dataclass(frozen=True)
class RowOrder:
    """Render this attempt of a row. `limit_s`: how long its ranks may take from when it is its turn.

    `sha256` is of its inputs, image and audio; `archive_name`: also keep the video under this name.
    """

    seq: int
    custom_id: str
    attempt: int
    spec: Document
    sha256: Document
    row_key: str
    limit_s: float
    metadata: Document = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    archive_name: str | None = None


@dataclass(frozen=True)
class RowReport:
    """How an attempt ended: with the result that is committed, or with an error.

    `has_brought_down`: the group failed while it worked on the row. `is_begun` is False where it never did, because
    the group was not there: that is no attempt. `busy_s`: how long the ranks worked on it.
    """

    seq: int
    attempt: int
    lane: str
    result: Document | None = None
    error: RowError | None = None
    has_brought_down: bool = False
    is_begun: bool = True
    busy_s: float = 0.0


@dataclass(frozen=True)
class LaneStatus:
    """What a lane does now. `busy_s`: how long its ranks have worked so far, on whatever.

    `orders` are those that it has, by row and attempt, also what it answered a moment ago. `asked_at` is when the
    driver asked for all that, by its own clock.
    """

    lane: str
    condition: GroupCondition
    custom_id: str = ""
    attempt: int = 0
    blocks_done: int = 0
    num_blocks: int = 0
    num_restarts: int = 0
    reason: str = ""
    busy_s: float = 0.0
    orders: tuple[tuple[int, int], ...] = ()
    asked_at: float = 0.0
