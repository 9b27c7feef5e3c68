"""Lanes of the own pool: replica groups that the driver makes for this job alone, without Serve.

The driver owns placement groups and leaders, so that Ray frees everything when it dies, however it dies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_cluster.bundles import LEADER_BUNDLE
from ray_cluster.errors import ClusterError
from ray_cluster.gpu_monitor import GpuLog, GpuMonitor
from ray_cluster.nvml import GpuReadError, NoGpus, open_gpus
from ray_cluster.placement import Placement, create_placement
from ray_cluster.replica_group import GroupState
from ray_cluster.restart_budget import RestartPolicy
from serve_app.bulk.identity import checkpoint_digest
from serve_app.bulk.lanes.answers import Answers
from serve_app.bulk.lanes.messages import LaneStatus, RowOrder, RowReport
from serve_app.bulk.lanes.row_renderer import Place, RowRenderer
from serve_app.bulk.output import open_output
from serve_app.bulk.spool import opened_spool, place_of_lanes
from serve_app.deployments.gang_source import GangSource, as_avatar_error, wait_ready
from serve_app.deployments.leader import CONDITIONS
from serve_app.deployments.render_group import group_bundles, replica_group
from serve_app.errors import AvatarError, CheckpointError
from serve_app.rendering.frames import PROGRAM, IsCancelled
from serve_app.schemas.bulk import BulkConfig
from serve_app.storage.folders import is_remote

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Orders that a lane takes at once: one has the ranks, the other one's inputs are read."""
_RESTARTS = RestartPolicy(max_restarts=20, within_s=3600.0)
"""Patient: rows that bring groups down are left alone, a breaker pauses the job; this ends groups that cannot start."""
_CONTROL_THREADS = 2
_LOG_EVERY_S = 1.0


@dataclass(frozen=True)
class LanePlan:
    """What every lane of a run is told. `program` is what its ranks run."""

    config: BulkConfig
    output: str
    run_id: str
    program: str = PROGRAM


class OwnLane:
    """The leader of one replica group: an actor on the first bundle of the group's placement."""

    def __init__(self, name: str, plan: LanePlan) -> None:
        self._open = ExitStack()
        self._name = name
        config, pool = plan.config, plan.config.pool
        group = replica_group(config, pool, name=name, program=plan.program, restarts=_RESTARTS)
        self._group, self._start_s = group, config.gang.start_s
        place = Place(open_output(plan.output), self._open.enter_context(opened_spool(place_of_lanes())))
        self._renderer = RowRenderer(
            GangSource(group, limits=config.gang),
            place,
            lane=name,
            num_ranks=pool.num_ranks,
            run_id=plan.run_id,
            config=config,
            wait_ready=self._wait_ready,
        )
        self._checkpoint = pool.checkpoint
        self._answers = Answers()
        self._open.enter_context(_gpu_csv(place, name))
        if ray.get_runtime_context().was_current_actor_reconstructed:  # Ray tells nobody else that it was
            self.start()

    def checkpoint(self) -> str | AvatarError:
        """Returns the digest of the checkpoint as this node sees it, or why there is none."""
        try:
            return checkpoint_digest(self._checkpoint)
        except AvatarError as error:
            return error

    def start(self) -> None:
        """Lets the ranks start and load."""
        self._group.start()

    def _wait_ready(self, is_cancelled: IsCancelled) -> None:
        try:
            wait_ready(self._group, timeout_s=self._start_s, is_cancelled=is_cancelled)
        except ClusterError as error:
            raise as_avatar_error(error) from error

    @ray.method(concurrency_group="rows")
    def render(self, order: RowOrder) -> RowReport:
        """Obeys an order; one that came before is not obeyed again, but answered."""
        return self._answers.of(order, self._renderer.render)

    @ray.method(concurrency_group="control")
    def forget(self, seq: int, attempt: int) -> None:
        """Lets go of an answer that has arrived."""
        self._answers.forget(seq, attempt)

    @ray.method(concurrency_group="control")
    def status(self) -> LaneStatus:
        """Returns what the group does."""
        told = LaneStatus(
            self._name,
            CONDITIONS[self._group.state],
            num_restarts=self._group.num_restarts,
            reason=self._group.last_reason,
            busy_s=self._renderer.busy_s,
            orders=self._answers.orders,
        )
        turn = self._renderer.now
        if turn is None:
            return told
        return replace(
            told,
            custom_id=turn.order.custom_id,
            attempt=turn.order.attempt,
            blocks_done=turn.blocks_done,
            num_blocks=turn.num_blocks,
        )

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Lets what runs end at its next block border."""
        self._renderer.stop()

    def close(self) -> None:
        """Ends the ranks."""
        self._renderer.stop()
        if self._group.state is not GroupState.STOPPED:
            self._group.stop()
        self._open.close()


@contextmanager
def _gpu_csv(place: Place, lane: str) -> Iterator[None]:
    """Logs the memory of this node's GPUs while the lane is there; on a bucket the log arrives at its end."""
    try:
        sampler = open_gpus()
    except GpuReadError as error:
        log.warning("gpus not logged", extra={"lane": lane, "error": str(error)})
        yield
        return
    if isinstance(sampler, NoGpus):
        yield
        return
    name = f"logs/gpu_{lane}.csv"
    is_far = is_remote(place.output.uri())
    path = place.spool / "gpu.csv" if is_far else Path(place.output.uri(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    with sampler, GpuLog(path) as csv, GpuMonitor(sampler, interval_s=_LOG_EVERY_S, listeners=[csv]):
        yield
    if is_far:
        place.output.put(path, name)


class OwnLanes:
    """The lanes of a job: made at once or not at all, ended together."""

    def __init__(self, plan: LanePlan, *, num_lanes: int, is_abandoned: Callable[[], bool]) -> None:
        self._plan = plan
        self._num_lanes = num_lanes
        self._is_abandoned = is_abandoned
        self._open = ExitStack()
        self.actors: dict[str, Any] = {}
        self.at_once = AT_ONCE

    def __enter__(self) -> Self:
        """Takes places and starts the leaders, not yet their ranks; raises PlacementError."""
        try:
            for index in range(self._num_lanes):
                name = f"group-{index}"
                self.actors[name] = self._leader(name, self._open.enter_context(self._placed(name)))
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Lets every group end in good order, within a limit; with its placement goes what is left of it."""
        closing = [actor.close.remote() for actor in self.actors.values()]
        ray.wait(closing, num_returns=len(closing), timeout=self._plan.config.gang.drain_s * 3)
        for actor in self.actors.values():
            ray.kill(actor)
        self._open.close()

    def model(self) -> str:
        """Returns the digest of the checkpoint; raises CheckpointError where a node has none, or another one."""
        asked = [actor.checkpoint.remote() for actor in self.actors.values()]
        digests: list[str | AvatarError] = ray.get(asked, timeout=self._plan.config.gang.start_s)
        for digest in digests:
            if isinstance(digest, AvatarError):
                raise digest
        if len(set(digests)) > 1:
            raise CheckpointError(
                f'the nodes have different checkpoints under "{self._plan.config.pool.checkpoint}"',
                remedy="give all nodes the same files, best on a shared disk",
                param="checkpoint",
            )
        return str(digests[0])

    def start(self) -> None:
        """Lets the ranks of all lanes start."""
        for actor in self.actors.values():
            actor.start.remote()

    def _placed(self, name: str) -> Any:  # noqa: ANN401  (a context manager)
        return create_placement(
            group_bundles(self._plan.config.pool),
            name=name,
            timeout_s=self._plan.config.gang.placement_s,
            is_abandoned=self._is_abandoned,
        )

    def _leader(self, name: str, placement: Placement) -> Any:  # noqa: ANN401  (Ray's handle)
        as_remote: Any = ray.remote
        make = as_remote(concurrency_groups={"rows": AT_ONCE, "control": _CONTROL_THREADS})(OwnLane)
        return make.options(
            num_cpus=placement.bundles.leader_cpus,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement.group, placement_group_bundle_index=LEADER_BUNDLE
            ),
        ).remote(name, self._plan)
