"""GangSource: frames made by a replica group, whose ranks share one video."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ray_cluster.errors import ClusterError, GroupUnavailableError, RankFailedError
from ray_cluster.gang import GangSpec, GangTimeouts
from ray_cluster.replica_group import GroupState, ReplicaGroup
from serve_app.errors import AvatarError, GangFailedError, RankError, RenderCancelledError
from serve_app.planning.layout import ParallelLayout
from serve_app.rendering.frames import PROGRAM, IsCancelled, rank_environment
from serve_app.schemas.config import GangLimits
from serve_app.task import FrameBlock, RenderTask
from serve_app.troubleshooting import remedy_for

_LOOK_EVERY_S = 0.2
_CLAIM_S = 5.0
"""A group that was ready a moment ago may have failed since: then its task is over before it began."""
_RUN_AHEAD = 3


@dataclass
class BlockTimes:
    """Predicts the time of a block: the mean of those seen in this video."""

    limits: GangLimits
    seconds: list[float] = field(default_factory=list)

    def limit_s(self, index: int) -> float:
        """Returns how long the ranks may work on block `index` without a note."""
        later = self.seconds[1:]  # the first one holds conditioning, and whatever a first call takes
        if index < 2 or not later:
            return self.limits.first_block_s
        return max(self.limits.least_progress_s, self.limits.progress_factor * sum(later) / len(later))


class GangSource:
    """A FrameSource on a replica group; a group that fails rebuilds itself for the next task."""

    def __init__(self, group: ReplicaGroup, *, limits: GangLimits) -> None:
        self._group = group
        self._limits = limits

    def frames(self, task: RenderTask, *, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        """See FrameSource; raises GangFailedError, or what the program itself raised, when a rank fails."""
        times = BlockTimes(self._limits)
        try:
            wait_ready(self._group, timeout_s=self._limits.start_s, is_cancelled=is_cancelled)
            blocks = self._group.run(task, item_limit_s=times.limit_s, ready_timeout_s=_CLAIM_S)
            # Closing cancels what still runs, and waits for its border.
            with _cancelling(self._group, is_cancelled), closing(blocks):
                for block in blocks:
                    if is_cancelled():
                        break
                    times.seconds.append(block.seconds)
                    yield block
        except ClusterError as error:
            raise as_avatar_error(error) from error
        if len(times.seconds) < task.timeline.num_blocks and is_cancelled():
            raise _cancelled()


def wait_ready(group: ReplicaGroup, *, timeout_s: float, is_cancelled: IsCancelled) -> None:
    """Waits until the group takes a task; raises RenderCancelledError soon after a cancel."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            group.wait_ready(timeout_s=_LOOK_EVERY_S)
        except GroupUnavailableError:
            if is_cancelled():
                raise _cancelled() from None
            if group.state is not GroupState.STARTING or time.monotonic() > deadline:
                raise
        else:
            return


@contextmanager
def _cancelling(group: ReplicaGroup, is_cancelled: IsCancelled) -> Iterator[None]:
    """Cancels the group's task as soon as it should be, also while the consumer waits for a block."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_LOOK_EVERY_S):
            if is_cancelled():
                group.cancel()

    watcher = threading.Thread(target=watch, name="cancel-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def _cancelled() -> RenderCancelledError:
    return RenderCancelledError("the render was cancelled", remedy="start it again to get the whole video")


def gang_timeouts(limits: GangLimits) -> GangTimeouts:
    """Returns the mechanism's part of the limits."""
    return GangTimeouts(
        placement_s=limits.placement_s, start_s=limits.start_s, heartbeat_s=limits.heartbeat_s, drain_s=limits.drain_s
    )


def gang_spec(
    layout: ParallelLayout,
    *,
    checkpoint: str,
    cache_dir: Path,
    limits: GangLimits,
    threads_per_rank: int,
    program: str = PROGRAM,
) -> GangSpec:
    """Returns what the ranks of this layout run."""
    options = {
        "checkpoint": checkpoint,
        "cache_dir": cache_dir,
        "layout": str(layout),
        "meet_s": limits.meet_s,
        "first_s": limits.first_message_s,
        "later_s": limits.message_s,
    }
    # As many finished blocks may wait as can be begun: the output rank never stops in Ray while others wait for it.
    return GangSpec(
        program,
        options=options,
        threads_per_rank=threads_per_rank,
        run_ahead=_RUN_AHEAD,
        num_buffered=layout.world_size + _RUN_AHEAD + 1,
        env=rank_environment(os.environ),
    )


def as_avatar_error(error: ClusterError) -> AvatarError:
    """Returns what a user is told: the program's own error, or the cluster's with the remedy that is known for it."""
    if isinstance(error, RankFailedError) and isinstance(error.cause, AvatarError):
        return _with_remedy(error.cause)
    failed = GangFailedError(error.message, remedy=remedy_for(error.message) or error.remedy)
    failed.details = error.traceback if isinstance(error, RankFailedError) else ""
    return failed


def _with_remedy(error: AvatarError) -> AvatarError:
    """Adds what is known of a failure between ranks, whose text is a library's; other errors have their own remedy."""
    if isinstance(error, RankError):
        error.remedy = remedy_for(error.message) or error.remedy
    return error
