"""LocalGangSource: a gang in a private Ray on this machine, for as long as a command runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from ray_cluster.bundles import GroupBundles
from ray_cluster.errors import ClusterError
from ray_cluster.gang import GangTimeouts
from ray_cluster.inventory import Gpu, local_gpus
from ray_cluster.local import local_cluster
from ray_cluster.nvml import NoGpus
from ray_cluster.replica_group import ReplicaGroup
from serve_app.deployments.gang_source import GangSource, ProgressLimits, as_avatar_error, gang_spec, wait_ready
from serve_app.errors import InvalidRequestError
from serve_app.planning.layout import ParallelLayout
from serve_app.rendering.frames import IsCancelled
from serve_app.schemas.config import AppConfig
from serve_app.task import FrameBlock, RenderTask

_SPARE_CPUS = 4
"""Of the private Ray, beside one per rank: CPUs there are tickets, not cores."""


class LocalGangSource:
    """A FrameSource whose Ray and gang start with the first task, when its inputs are known to be good."""

    def __init__(
        self, layout: ParallelLayout, *, checkpoint: str, config: AppConfig, on_start: Callable[[str], None]
    ) -> None:
        """`on_start` is told one line when the ranks are ready."""
        self._layout = layout
        self._checkpoint = checkpoint
        self._config = config
        self._on_start = on_start
        self._open = ExitStack()
        self._source: GangSource | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def frames(self, task: RenderTask, *, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        """See FrameSource; the first call starts Ray and the ranks, and may raise what they raise."""
        if self._source is None:
            try:
                self._source = self._start(is_cancelled)
            except ClusterError as error:
                raise as_avatar_error(error) from error
        return self._source.frames(task, is_cancelled=is_cancelled)

    def _start(self, is_cancelled: IsCancelled) -> GangSource:
        started = time.perf_counter()
        num_ranks, timeouts = self._layout.world_size, GangTimeouts()
        gpus = local_gpus()
        num_gpus = num_ranks if isinstance(gpus, NoGpus) else _enough(gpus, self._layout)
        self._open.enter_context(local_cluster(num_cpus=num_ranks + _SPARE_CPUS, num_gpus=num_gpus))
        spec = gang_spec(
            self._layout,
            checkpoint=self._checkpoint,
            cache_dir=self._config.cache_dir,
            threads_per_rank=self._config.threads or max(1, (os.cpu_count() or 1) // num_ranks),
        )
        group = ReplicaGroup("local", spec, GroupBundles(num_ranks), timeouts=timeouts)
        self._open.callback(group.stop)
        group.start()
        wait_ready(group, timeout_s=timeouts.placement_s + timeouts.start_s, is_cancelled=is_cancelled)
        where = "CPU" if isinstance(gpus, NoGpus) else f"{len(gpus)} GPUs"
        ranks = "1 rank" if num_ranks == 1 else f"{num_ranks} ranks"
        seconds = time.perf_counter() - started
        self._on_start(f"{ranks} ({self._layout}) on {where}, started in {seconds:.1f} s")
        return GangSource(group, limits=ProgressLimits(), ready_timeout_s=timeouts.start_s)


def _enough(gpus: Sequence[Gpu], layout: ParallelLayout) -> int:
    """Returns how many GPUs there are; raises InvalidRequestError when the layout has more ranks."""
    if len(gpus) < layout.world_size:
        raise InvalidRequestError(
            f"layout {layout} has {layout.world_size} ranks, one per GPU, but this machine has {len(gpus)}",
            remedy=f"use a layout of at most {len(gpus)} ranks (stages x ulysses + vae)",
            param="layout",
        )
    return len(gpus)
