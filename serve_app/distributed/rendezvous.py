"""Rendezvous: how the processes of a gang find each other, and which backend carries their tensors."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ray_cluster.program import Seat
from serve_app.errors import RankError


def open_store(host: str) -> tuple[TCPStore, str]:
    """Opens the meeting point on `host` and a port that the system picks; returns it and its address "host:port".

    Whoever opens it keeps it. The socket is bound here, to `host` alone: left to itself the store would listen on
    every interface, and a port that is probed first may be taken before it is bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError as error:
        raise RankError(
            f"no meeting point can be opened on {host}: {error.strerror or error}",
            remedy="check that this address belongs to the machine and that free ports are left",
        ) from error
    port = listener.getsockname()[1]
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach(), use_libuv=False
    )
    return store, f"{host}:{port}"


def join(seat: Seat, *, own_store: TCPStore | None, timeout_s: float) -> None:
    """Meets the other ranks of the gang and opens the default process group.

    NCCL carries CUDA tensors, gloo those of the CPU. `timeout_s` holds for the meeting and for every collective
    of all ranks. Raises RankError.
    """
    timeout = timedelta(seconds=timeout_s)
    with explained(seat, timeout_s):
        store = _connected(seat.rendezvous, timeout) if own_store is None else own_store
        distributed.init_process_group(
            _backend(), store=store, rank=seat.rank, world_size=seat.num_ranks, timeout=timeout
        )


@contextmanager
def explained(seat: Seat, timeout_s: float) -> Iterator[None]:
    """Turns what torch raises while ranks meet, time-outs and refused connections among it, into RankError."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            f"rank {seat.rank} did not meet the other {seat.num_ranks - 1} at {seat.rendezvous} "
            f"within {timeout_s:g} s: {error}",
            remedy="check that the nodes reach each other on all ports; where a node has several networks, name the "
            "right one: GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME; NCCL_DEBUG=INFO tells more",
        ) from error


def leave() -> None:
    """Closes all process groups of this process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _connected(address: str, timeout: timedelta) -> TCPStore:
    host, _, port = address.rpartition(":")
    return TCPStore(host, int(port), is_master=False, timeout=timeout, use_libuv=False)


def _backend() -> str:
    if not torch.cuda.is_available():
        return "gloo"
    if not distributed.is_nccl_available():
        raise RankError(
            "this build of torch has CUDA but not NCCL, which GPUs need to reach each other",
            remedy="install the build of torch for Linux with CUDA",
        )
    return "cpu:gloo,cuda:nccl"
