"""LocalGangSource: a gang in a private Ray on this machine, for as long as a command runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from ray_cluster.bundles import GroupBundles
from ray_cluster.errors import ClusterError
from ray_cluster.gang import GangSpec
from ray_cluster.inventory import local_gpus
from ray_cluster.local import local_cluster
from ray_cluster.nvml import GpuReadError, NoGpus
from ray_cluster.replica_group import ReplicaGroup
from ray_cluster.restart_budget import RestartPolicy
from serve_app.deployments.gang_source import GangSource, as_avatar_error, gang_spec, gang_timeouts, wait_ready
from serve_app.errors import GangFailedError, InvalidRequestError
from serve_app.planning.layout import ParallelLayout
from serve_app.rendering.frames import IsCancelled
from serve_app.rendering.import_path import check_model_packages
from serve_app.schemas.config import AppConfig
from serve_app.task import FrameBlock, RenderTask
from serve_app.troubleshooting import remedy_for

_SPARE_CPUS = 4
"""Of the private Ray, beside one per rank: CPUs there are tickets, not cores."""
_WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""For ranks on logical GPUs: Ray would show them whatever GPU of the machine has that number."""


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
        layout, limits = self._layout, self._config.gang
        gpus = usable_gpus(self._config.cuda_visible_devices)
        if gpus and gpus < layout.world_size:
            raise _too_few(gpus, layout)
        check_model_packages()  # here, for a rank that lacks them would say so only after Ray has started
        self._open.enter_context(
            local_cluster(
                num_cpus=layout.world_size + _SPARE_CPUS,
                num_gpus=gpus or layout.world_size,
                gpus_are_logical=not gpus,
            )
        )
        group = ReplicaGroup(
            "local",
            self._spec(on_cpu=not gpus),
            GroupBundles(layout.world_size),
            timeouts=gang_timeouts(limits),
            restarts=RestartPolicy(max_restarts=0),  # a command fails with its gang
        )
        self._open.callback(group.stop)
        group.start()
        wait_ready(group, timeout_s=limits.placement_s + limits.start_s, is_cancelled=is_cancelled)
        self._on_start(f"{self._ranks_of(group, gpus)}, started in {time.perf_counter() - started:.1f} s")
        return GangSource(group, limits=limits)

    def _spec(self, *, on_cpu: bool) -> GangSpec:
        spec = gang_spec(
            self._layout,
            checkpoint=self._checkpoint,
            cache_dir=self._config.cache_dir,
            limits=self._config.gang,
            threads_per_rank=self._config.threads or max(1, (os.cpu_count() or 1) // self._layout.world_size),
        )
        return replace(spec, env={**spec.env, **_WITHOUT_GPU}) if on_cpu else spec

    def _ranks_of(self, group: ReplicaGroup, gpus: int) -> str:
        """Says what runs where; raises GangFailedError when there are GPUs and the ranks do not use them."""
        assert group.gang is not None
        devices = {str(report.facts["device"]) for report in group.gang.reports}
        if gpus and devices != {"cuda"}:
            raise GangFailedError(
                f"this machine has {gpus} GPUs, but torch sees none of them in the ranks",
                remedy="`live-avatar doctor` compares driver and torch; CUDA_VISIBLE_DEVICES= renders on the CPU",
            )
        ranks = "1 rank" if self._layout.world_size == 1 else f"{self._layout.world_size} ranks"
        return f"{ranks} ({self._layout}) on {'GPUs' if gpus else 'the CPU'}"


def usable_gpus(cuda_visible_devices: str | None) -> int:
    """Returns how many GPUs this process may use: those of the machine, less what CUDA's variable hides.

    Raises GangFailedError when one does not answer.
    """
    try:
        gpus = local_gpus()
    except GpuReadError as error:
        raise GangFailedError(
            str(error), remedy=remedy_for(str(error)) or "`live-avatar doctor` looks further"
        ) from error
    if isinstance(gpus, NoGpus):
        return 0
    if cuda_visible_devices is None:
        return len(gpus)
    named = [name.strip() for name in cuda_visible_devices.split(",")]
    return min(len(gpus), len([name for name in named if name not in ("", "-1")]))


def _too_few(gpus: int, layout: ParallelLayout) -> InvalidRequestError:
    return InvalidRequestError(
        f"layout {layout} has {layout.world_size} ranks, one per GPU, but {gpus} may be used",
        remedy=f"use a layout of at most {gpus} ranks (stages x ulysses + vae)",
        param="layout",
    )
