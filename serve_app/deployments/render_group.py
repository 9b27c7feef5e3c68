"""RenderGroup: the Serve replica that leads one replica group, on the placement group that Serve made for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from ray_cluster.bundles import GroupBundles, Strategy
from ray_cluster.replica_group import GroupState, ReplicaGroup
from ray_cluster.restart_budget import RestartPolicy
from serve_app.deployments.gang_source import GangSource, gang_spec, gang_timeouts
from serve_app.deployments.leader import Leader, Workshop
from serve_app.deployments.metrics import RayMetrics
from serve_app.errors import AvatarError, GangFailedError
from serve_app.jobs.messages import Answer, GroupReport
from serve_app.planning.layout import ParallelLayout
from serve_app.rendering.frames import PROGRAM
from serve_app.schemas.config import AppConfig
from serve_app.schemas.service import PoolConfig, ServiceConfig
from serve_app.storage.files import FileStore
from serve_app.storage.videos import VideoFiles

_WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}


class RenderGroup:
    """Takes no requests: it asks the Dispatcher for work. Unhealthy only when its restart budget is spent."""

    def __init__(self, config: ServiceConfig, pool: PoolConfig, dispatcher: DeploymentHandle[Any]) -> None:
        self._times = config.times
        self._dispatcher = dispatcher
        self._group = replica_group(
            config, pool, name=f"{pool.name}-{serve.get_replica_context().replica_id.unique_id}"
        )
        workshop = Workshop(
            source=GangSource(self._group, limits=config.gang),
            files=FileStore(config.data_dir),
            videos=VideoFiles(config.data_dir),
            config=config,
            metrics=RayMetrics(),
            pool=pool.name,
        )
        self._leader = Leader(self._group, self._ask, workshop, times=config.times)
        self._group.start()
        self._reporting = asyncio.get_running_loop().create_task(self._leader.report_for_ever())

    async def check_health(self) -> None:
        """Raises when the group has given up, or nobody reports for it any more."""
        if self._group.state is GroupState.FAILED:
            raise GangFailedError(
                f"group {self._group.name} has failed: {self._group.last_reason}", remedy="see the log of its ranks"
            )
        if self._reporting.done():
            self._reporting.result()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tells Serve's autoscaler what the pool needs; see `scaling`."""
        return {"busy": float(self._leader.is_busy), "waiting": float(self._leader.num_waiting)}

    async def __del__(self) -> None:
        """Finishes the video in work, as Serve takes this replica away; then ends the ranks."""
        await self._leader.drain(timeout_s=self._times.drain_s)
        self._reporting.cancel()
        await self._leader.leave()
        await asyncio.to_thread(self._group.stop)

    async def _ask(self, told: GroupReport) -> Answer:
        answer = await self._dispatcher.report.remote(told)
        if isinstance(answer, AvatarError):
            raise answer
        assert isinstance(answer, Answer)
        return answer


def group_bundles(pool: PoolConfig) -> GroupBundles:
    """Returns what one group of a pool takes from the cluster."""
    return GroupBundles(
        pool.num_ranks,
        cpus_per_rank=pool.cpus_per_rank,
        gpus_per_rank=pool.gpus_per_rank,
        leader_cpus=pool.leader_cpus,
        strategy=Strategy.PACK if pool.spreads_over_nodes else Strategy.STRICT_PACK,
        node_resource=pool.node_resource,
    )


def replica_group(
    config: AppConfig,
    pool: PoolConfig,
    *,
    name: str,
    program: str = PROGRAM,
    restarts: RestartPolicy | None = None,
) -> ReplicaGroup:
    """Returns a group of a pool, led by this process on the first bundle of the placement in which it runs."""
    spec = gang_spec(
        ParallelLayout.parse(pool.layout),
        checkpoint=pool.checkpoint,
        cache_dir=config.cache_dir,
        limits=config.gang,
        threads_per_rank=pool.threads_per_rank or max(1, round(pool.cpus_per_rank)),
        program=program,
    )
    if pool.gpu is None:
        spec = replace(spec, env={**spec.env, **_WITHOUT_GPU})
    return ReplicaGroup(
        name,
        spec,
        group_bundles(pool),
        adopts_placement=True,
        timeouts=gang_timeouts(config.gang),
        restarts=restarts,
    )
