"""A private Ray on this machine, for the command line and for tests: it ends with its driver, whatever happens."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray._raylet

from ray_cluster.errors import LocalClusterError

MIB = 1 << 20


@contextmanager
def local_cluster(
    *,
    num_cpus: int,
    num_gpus: int,
    object_store_bytes: int = 512 * MIB,
    temp_root: Path = Path("/tmp"),  # noqa: S108
) -> Iterator[None]:
    """Starts a Ray of this process alone, and ends it.

    `num_gpus` may be more than there are. Call it on a thread that lives as long: the kernel ends the cluster with
    the thread that started it. The cluster listens on all addresses of the machine, for Ray replaces a loopback
    address by the machine's own; so only who knows the token of this run, which is kept in no file, may use it.
    """
    if ray.is_initialized():
        raise LocalClusterError("this process is connected to a Ray cluster already", remedy="disconnect from it first")
    _check_shared_memory(object_store_bytes)
    folder = Path(tempfile.mkdtemp(prefix="rc-", dir=temp_root))  # short: paths of unix sockets end at 107 characters
    try:
        with _environment(_settings()):
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                object_store_memory=object_store_bytes,
                include_dashboard=False,
                configure_logging=False,
                log_to_driver=False,
                _temp_dir=str(folder),
            )
            try:
                yield
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settings() -> Mapping[str, str]:
    """Returns what Ray's processes read from the environment."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # how long Ray's agents outlive a driver that was killed
    }


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*settings, "RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")}
    os.environ.update(settings)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)
    _read_environment()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_environment()


def _read_environment() -> None:
    """Lets Ray read its settings and the token again: it does so once, when it is imported or first used."""
    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _check_shared_memory(object_store_bytes: int) -> None:
    free_bytes = shutil.disk_usage("/dev/shm").free  # noqa: S108
    if object_store_bytes > free_bytes:
        raise LocalClusterError(
            f"the object store takes {object_store_bytes / MIB:.0f} MiB, /dev/shm has {free_bytes / MIB:.0f} MiB",
            remedy="give less, or enlarge /dev/shm (docker run --shm-size)",
        )
