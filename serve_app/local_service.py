"""The service on this machine, in a private Ray that ends with it; accepted jobs go on at its next start."""

from __future__ import annotations

import fcntl
import logging
import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx2
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import ApplicationStatus

from ray_cluster.local import LocalCluster, local_cluster
from serve_app.api import flow_proxy
from serve_app.app import build_app
from serve_app.deployments.dispatcher import STORE_NAME
from serve_app.deployments.local_gang import usable_gpus
from serve_app.deployments.render_group import group_bundles
from serve_app.errors import InvalidRequestError, OutputError, RenderCancelledError, UnavailableError
from serve_app.jobs.store import JobReader
from serve_app.schemas.service import ServiceConfig

APP_NAME = "live-avatar"
_SPARE_CPUS = 8
"""Of the private Ray, for Serve's own actors, Dispatcher and API: CPUs there are tickets, not cores."""
_LOOK_EVERY_S = 0.2
_START_S = 300.0
"""For Dispatcher, API and leaders; how long ranks may take to load is in the configuration."""
_LOCK_NAME = "service.lock"
_REMEDY = "`live-avatar doctor` looks at this machine"


@contextmanager
def local_service(
    config: ServiceConfig, *, host: str, port: int, is_cancelled: Callable[[], bool] = lambda: False
) -> Iterator[LocalCluster]:
    """Starts the application; it takes requests at `host`:`port` when this yields, and is gone afterwards.

    Raises InvalidRequestError when the port is taken, or another service has the data folder; OutputError or
    StoreError when that is of no use; RenderCancelledError, UnavailableError or ClusterError from the start.
    """
    _check_is_free(host, port)
    _check_gpus(config)
    _check_resources(config)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what it tells of starting, we tell
    with _alone_in(config.data_dir):
        JobReader.open(config.data_dir / STORE_NAME).close()  # here, for a Dispatcher that cannot is tried thrice
        gpus = usable_gpus(config.cuda_visible_devices)
        flow = {flow_proxy.SETTING: flow_proxy.IMPORT_PATH}
        with local_cluster(num_cpus=num_cpus(config), num_gpus=gpus, environment=flow) as cluster:
            serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host=host, port=port))
            target = serve.RunTarget(build_app(config), name=APP_NAME, route_prefix="/")
            serve.run_many([target], wait_for_applications_running=False)
            _wait_until_running(host, port, is_cancelled)
            yield cluster


def num_cpus(config: ServiceConfig) -> int:
    """Returns how many CPUs the private Ray says that it has: as many as all groups and Serve want."""
    wanted = sum(pool.max_groups * group_bundles(pool).total()["CPU"] for pool in config.pools)
    return math.ceil(wanted) + _SPARE_CPUS


def wait_for_groups(url: str, *, timeout_s: float, is_cancelled: Callable[[], bool]) -> bool:
    """Waits until some group takes videos; says False when cancelled. Raises UnavailableError with what it saw last."""
    deadline, seen = time.monotonic() + timeout_s, "no answer"
    while time.monotonic() < deadline:
        if is_cancelled():
            return False
        try:
            answer = httpx2.get(f"{url}/v1/capacity", timeout=_LOOK_EVERY_S * 10)
            groups = [group for pool in answer.json()["pools"] for group in pool["groups"]]
            seen = ", ".join(map(_shown, groups)) or "no groups"
            conditions = {group["condition"] for group in groups}
            if conditions & {"ready", "busy"}:
                return True
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            seen, conditions = f"{type(error).__name__}: {error}", set()
        if conditions == {"failed"}:
            raise UnavailableError(f"no group takes videos: {seen}", remedy=_REMEDY)
        time.sleep(_LOOK_EVERY_S)
    raise UnavailableError(f"no group takes videos after {timeout_s:g} s: {seen}", remedy=_REMEDY)


def _shown(group: Mapping[str, str]) -> str:
    because = f" ({group['reason']})" if group["reason"] else ""
    return f"{group['name']} is {group['condition']}{because}"


def _alone_in(folder: Path) -> IO[str]:
    """Returns a lock on the data folder: a second Dispatcher would take the jobs of the first.

    The kernel lets go of it with this process, however that ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK_NAME).open("a")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise InvalidRequestError(
            f'another service works in "{folder}"', remedy="stop it, or name another --data-dir", param="data_dir"
        ) from error
    except OSError as error:
        raise OutputError(
            f'"{folder}" cannot be used: {error.strerror or error}',
            remedy="name a --data-dir that is writable",
            param="data_dir",
        ) from error
    return lock


def _wait_until_running(host: str, port: int, is_cancelled: Callable[[], bool]) -> None:
    """Waits until the application's deployments are there and the port leads to them."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if is_cancelled():
            raise RenderCancelledError("the service was stopped while it started", remedy="start it again")
        application = serve.status().applications[APP_NAME]
        if application.status is ApplicationStatus.DEPLOY_FAILED:
            raise UnavailableError(f"the service does not start: {application.message}", remedy=_REMEDY)
        if application.status is ApplicationStatus.RUNNING and _is_answered(host, port):
            return
        time.sleep(_LOOK_EVERY_S)
    raise UnavailableError(
        f"the service has not started after {_START_S:g} s: {application.message or application.status.value}",
        remedy=_REMEDY,
    )


def _is_answered(host: str, port: int) -> bool:
    """Whether Serve's proxy knows the application; until then it answers 404, or nothing."""
    reached = "127.0.0.1" if host in ("", "0.0.0.0") else host  # noqa: S104
    try:
        return httpx2.get(f"http://{reached}:{port}/livez", timeout=_LOOK_EVERY_S * 10).status_code != 404
    except httpx2.HTTPError:
        return False


def _check_resources(config: ServiceConfig) -> None:
    """Refuses what only a cluster has: nothing would ever start."""
    named = [config.control_resource, *(pool.node_resource for pool in config.pools)]
    if any(named):
        raise InvalidRequestError(
            f"resource {next(filter(None, named))!r} tells nodes of a cluster apart, and this is one machine",
            remedy="leave control_resource and node_resource out, or deploy with `serve deploy`",
            param="pools",
        )


def _check_gpus(config: ServiceConfig) -> None:
    wanted = sum(pool.num_ranks * pool.min_groups for pool in config.pools if pool.gpu is not None)
    there = usable_gpus(config.cuda_visible_devices)
    if wanted > there:
        raise InvalidRequestError(
            f"the pools want {wanted} GPUs for their groups, but {there} may be used here",
            remedy="lower min_groups, use layouts of fewer ranks, or leave out `gpu` to compute on the CPU",
            param="pools",
        )


def _check_is_free(host: str, port: int) -> None:
    """Says early, and in a sentence, what Serve would tell in its log."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise InvalidRequestError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}",
            remedy="end what listens there, or name another --port",
            param="port",
        ) from error
