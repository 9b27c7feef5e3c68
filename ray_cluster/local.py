"""A private Ray on this machine, which ends with its driver, whatever happens; or a cluster that runs elsewhere."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
import ray._raylet

from ray_cluster.environment import changed_environment
from ray_cluster.errors import LocalClusterError

MIB = 1 << 20
GUARD_LIMIT_S = 30.0
OF_ANOTHER_CLUSTER = (
    "RAY_ADDRESS",
    "RAY_AUTH_TOKEN_PATH",
    # Where another head keeps its state, and every head that starts would: in pods of KubeRay, and so in their jobs.
    "RAY_REDIS_ADDRESS",
    "RAY_external_storage_namespace",
    "RAY_gcs_storage",
    "RAY_gcs_storage_path",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",  # of the job that this process is: its files are on the cluster of that job
)
"""Variables that would lead a private cluster to another one."""
_NO_START = "Ray does not start on this machine"
_LOOK = "look at memory, /dev/shm, open files and the environment (CUDA_VISIBLE_DEVICES, RAY_...)"
_NAME = "name the address of its head, with its token in the environment (RAY_AUTH_TOKEN)"


@dataclass(frozen=True)
class LocalCluster:
    """Where the cluster is, and the environment that another process needs to join it."""

    address: str
    environment: Mapping[str, str] = field(repr=False)


@contextmanager
def local_cluster(
    *,
    num_cpus: int,
    num_gpus: int,
    gpus_are_logical: bool = False,
    object_store_bytes: int = 512 * MIB,
    environment: Mapping[str, str] = MappingProxyType({}),
    temp_root: Path = Path("/tmp"),  # noqa: S108
) -> Iterator[LocalCluster]:
    """Starts a Ray of this process alone, and ends it.

    With `gpus_are_logical` there may be any number of them: tickets, whatever the machine has. `environment` is what
    all its processes find in theirs. Call it on a thread that lives as long: the kernel ends the cluster with the
    thread that started it. Raises LocalClusterError.

    The cluster listens on all addresses of the machine, for Ray replaces a loopback address by the machine's own; so
    only who has the token of this run, which is in no file, may use it.
    """
    if ray.is_initialized():
        raise LocalClusterError("this process is connected to a Ray cluster already", remedy="disconnect from it first")
    _check_shared_memory(object_store_bytes)
    settings = {**_settings(), **environment}
    with _guarded_folder(temp_root) as folder, _ray_settings():
        try:
            hidden = ("CUDA_VISIBLE_DEVICES",) if gpus_are_logical else ()  # Ray wants as many there
            cleared = (*OF_ANOTHER_CLUSTER, *hidden)
            with changed_environment(settings, cleared=cleared), _same_sigterm(), _told(_NO_START, remedy=_LOOK):
                _read_environment()
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
            yield LocalCluster(ray.get_runtime_context().gcs_address, settings)
        finally:
            ray.shutdown()


@contextmanager
def joined_cluster(address: str) -> Iterator[None]:
    """Connects this process to a cluster that runs, and leaves it at the end; what it made there ends with it.

    `address` as Ray takes it; "auto": the cluster of this node, or of the job that this process is. Raises
    LocalClusterError.
    """
    if ray.is_initialized():
        raise LocalClusterError("this process is connected to a Ray cluster already", remedy="disconnect from it first")
    try:
        with _same_sigterm(), _told(f"no Ray cluster lets this process in at {address!r}", remedy=_NAME):
            ray.init(address=address, configure_logging=False, log_to_driver=False)
        yield
    finally:
        ray.shutdown()


def _settings() -> Mapping[str, str]:
    """Returns what Ray's processes, and nobody else, find in their environment."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_DEDUP_LOGS": "0",
    }


@contextmanager
def _guarded_folder(root: Path) -> Iterator[Path]:
    """Makes the cluster's folder; a guard removes it, and whatever process still uses it, even if we are killed."""
    folder = Path(tempfile.mkdtemp(prefix="rc-", dir=root))  # short: paths of unix sockets end at 107 characters
    script = str(Path(__file__).with_name("cluster_guard.py"))
    command = [sys.executable, "-I", "-S", script, str(folder), str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", start_new_session=True) as guard:  # noqa: S603
        try:
            yield folder
        finally:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait(GUARD_LIMIT_S)


@contextmanager
def _ray_settings() -> Iterator[None]:
    """Lets Ray forget at the end what it read for this cluster."""
    try:
        yield
    finally:
        _read_environment()


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """Keeps what SIGTERM does in this process: Ray sets a handler of its own."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _told(what: str, *, remedy: str) -> Iterator[None]:
    """Tells what Ray has against it as an error of ours."""
    try:
        yield
    except Exception as error:  # Ray raises a bare one, for example when the start takes too long
        raise LocalClusterError(f"{what}: {error}", remedy=remedy) from error


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
