"""Where a bulk job runs: in a private Ray on this machine, or on a cluster; and how many groups there is room for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from ray_cluster.local import joined_cluster, local_cluster
from serve_app.deployments.local_gang import usable_gpus
from serve_app.deployments.render_group import group_bundles
from serve_app.errors import InvalidRequestError, UnavailableError
from serve_app.schemas.bulk import BulkConfig

_SPARE_CPUS = 4


@contextmanager
def bulk_cluster(address: str | None, config: BulkConfig, *, num_groups: int | None, wants_cpu: bool) -> Iterator[int]:
    """Connects to the cluster at `address`, None: starts one on this machine; yields how many groups there shall be.

    `num_groups` None: as many as there are GPUs for, or one without. `wants_cpu`: that GPUs are left idle is meant.
    Raises InvalidRequestError when there are too few GPUs, or more than nobody spoke of; ClusterError.
    """
    if address is not None:
        with joined_cluster(address):
            gpus = _cluster_gpus()
            if gpus and config.pool.gpu is None and not wants_cpu:
                raise _unspoken(gpus)
            yield _num_groups(config, num_groups, gpus, where="the cluster")
        return
    gpus = usable_gpus(config.cuda_visible_devices)
    groups = _num_groups(config, num_groups, gpus, where="this machine")
    cpus = math.ceil(groups * group_bundles(config.pool).total()["CPU"]) + _SPARE_CPUS
    with local_cluster(num_cpus=cpus, num_gpus=gpus):
        yield groups


def count_groups(config: BulkConfig) -> int:
    """Returns how many groups this machine has GPUs for, and 1 where it has none: another one may be planned for."""
    pool = config.pool
    return 1 if pool.gpu is None else max(1, usable_gpus(config.cuda_visible_devices) // pool.num_ranks)


@contextmanager
def told_of_ray() -> Iterator[None]:
    """Tells what Ray says of lanes that are gone or do not answer as an error of ours; raises UnavailableError."""
    try:
        yield
    except RayError as error:
        lines = str(error).splitlines() or [""]
        said = " ... ".join(dict.fromkeys((lines[0], lines[-1])))  # of what an actor raised the last one says what
        raise UnavailableError(
            f"the cluster fails under the job: {type(error).__name__}: {said}",
            remedy="see whether its nodes live, and have the same packages; the same command continues",
        ) from error


def _num_groups(config: BulkConfig, wanted: int | None, gpus: int, *, where: str) -> int:
    pool = config.pool
    if pool.gpu is None:
        return wanted or 1
    room = gpus // pool.num_ranks
    if room < (wanted or 1):
        raise InvalidRequestError(
            f"{wanted or 1} groups of {pool.num_ranks} ranks ({pool.layout}) want {(wanted or 1) * pool.num_ranks} "
            f"GPUs, but {where} has {gpus}",
            remedy="use fewer groups or a layout of fewer ranks, or --gpus none to compute on the CPU",
            param="groups",
        )
    return wanted or room


def _unspoken(gpus: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"the cluster has {gpus} GPUs, and nothing says of what kind those of the groups are",
        remedy="name the kind or the memory with --gpus, for example 80; or --gpus none to compute on the CPU",
        param="gpus",
    )


def _cluster_gpus() -> int:
    resources: dict[str, Any] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("GPU", 0))
