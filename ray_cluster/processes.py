"""Processes by an identity that outlives their number: a number is used again, number and start time are not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.01


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of one node. `start_ticks`: clock ticks from the node's boot to its start."""

    node_id: str
    pid: int
    start_ticks: int


def this_process(node_id: str) -> ProcessIdentity:
    """Returns the identity of the calling process, which runs on node `node_id`."""
    _, start_ticks = _stat(os.getpid())
    return ProcessIdentity(node_id, os.getpid(), start_ticks)


def resident_bytes() -> int:
    """Returns the memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def is_alive(process: ProcessIdentity) -> bool:
    """Returns whether a process of this node still runs; one that only waits to be reaped does not."""
    try:
        state, start_ticks = _stat(process.pid)
    except OSError:
        return False
    return start_ticks == process.start_ticks and state not in ("Z", "X")


def end_processes(processes: Collection[ProcessIdentity], *, grace_s: float, timeout_s: float) -> list[ProcessIdentity]:
    """Waits for processes of this node that were told to end, then sends SIGKILL, which reaches stopped ones too.

    Returns those that still run after `timeout_s`.
    """
    left = _await_end(processes, grace_s)
    for process in left:
        _kill(process)
    return _await_end(left, timeout_s)


def _await_end(processes: Collection[ProcessIdentity], timeout_s: float) -> list[ProcessIdentity]:
    """Returns the processes that still run after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    left = [process for process in processes if is_alive(process)]
    while left and time.monotonic() < deadline:
        time.sleep(POLL_S)
        left = [process for process in left if is_alive(process)]
    return left


def _kill(process: ProcessIdentity) -> None:
    """Sends through a handle that stays with the process even if its number is used again in between."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if is_alive(process):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def _stat(pid: int) -> tuple[str, int]:
    """Returns state and start time (proc(5), fields 3 and 22); the name before them may hold any character."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[19])
