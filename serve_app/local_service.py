"""The service on this machine, in a private Ray that ends with it; accepted jobs go on at its next start."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from ray_cluster.local import LocalCluster, local_cluster
from serve_app.app import build_app
from serve_app.deployments.local_gang import usable_gpus
from serve_app.errors import InvalidRequestError, UnavailableError
from serve_app.schemas.service import ServiceConfig

APP_NAME = "live-avatar"
_SPARE_CPUS = 8
"""Of the private Ray, for Serve's own actors, Dispatcher and API: CPUs there are tickets, not cores."""
_LOOK_EVERY_S = 0.2


@contextmanager
def local_service(config: ServiceConfig, *, host: str, port: int) -> Iterator[LocalCluster]:
    """Starts the application; it takes requests at `host`:`port` when this yields, and is gone afterwards.

    Raises InvalidRequestError when the port is taken, ClusterError when Ray does not start.
    """
    _check_is_free(host, port)
    _check_gpus(config)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what it tells of starting, we tell
    config.data_dir.mkdir(parents=True, exist_ok=True)
    ranks = sum(pool.num_ranks * pool.max_groups for pool in config.pools)
    gpus = usable_gpus(config.cuda_visible_devices)
    with local_cluster(num_cpus=2 * ranks + _SPARE_CPUS, num_gpus=gpus) as cluster:
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host=host, port=port))
        serve.run(build_app(config), name=APP_NAME, route_prefix="/")
        yield cluster


def wait_for_groups(url: str, *, timeout_s: float, is_cancelled: Callable[[], bool]) -> bool:
    """Waits until some group takes videos; says False when cancelled. Raises UnavailableError with what it saw last."""
    deadline, seen = time.monotonic() + timeout_s, "no answer"
    while time.monotonic() < deadline:
        if is_cancelled():
            return False
        try:
            answer = httpx2.get(f"{url}/v1/capacity", timeout=_LOOK_EVERY_S * 10)
            groups = [group for pool in answer.json()["pools"] for group in pool["groups"]]
            seen = ", ".join(f"{group['name']} is {group['condition']}" for group in groups) or "no groups"
            if any(group["condition"] in ("ready", "busy") for group in groups):
                return True
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            seen = f"{type(error).__name__}: {error}"
        time.sleep(_LOOK_EVERY_S)
    raise UnavailableError(
        f"no group takes videos after {timeout_s:g} s: {seen}", remedy="`live-avatar doctor` looks at this machine"
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
