"""RunLock: one driver per output folder, told by a heartbeat in run.json.

Clocks of two machines may differ, so nobody compares them: who wants the folder watches whether the heartbeat moves.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ray_cluster.processes import ProcessIdentity, is_alive, this_process
from serve_app.bulk.row import Document
from serve_app.errors import InvalidRequestError, OutputError, StorageError
from serve_app.schemas.bulk import BulkLimits
from serve_app.storage.base import Folder, Stored

RUN = "run.json"
CANCEL = "cancel.json"
_LOOK_EVERY_S = 0.5
_OLD_RUN = "stop it, wait for its end, or name another --out"


@dataclass(frozen=True)
class Machine:
    """What tells whether two processes can see each other's numbers."""

    host: str
    boot: str
    pids: str

    @classmethod
    def this(cls) -> Self:
        return cls(
            host=socket.gethostname(),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            pids=str(Path("/proc/self/ns/pid").readlink()),
        )


class RunLock:
    """Holds an output folder for one driver; a thread keeps the heartbeat."""

    def __init__(
        self, folder: Folder, *, run_id: str, about: Document, limits: BulkLimits, on_lost: Callable[[str], None]
    ) -> None:
        """`on_lost` is told, on another thread, when the folder is no longer this driver's: it must stop."""
        self._folder = folder
        self._run_id = run_id
        self._about = about
        self._limits = limits
        self._on_lost = on_lost
        self._is_over = threading.Event()
        self._num_beats = 0
        self._started_at = time.time()
        self._beating = threading.Thread(target=self._beat_for_ever, name="run-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Takes the folder, waiting for a driver that is gone; raises InvalidRequestError where one works."""
        stored = self._folder.read(RUN)
        if stored is not None and _is_running(stored):
            self._wait_until_gone(stored)
            stored = self._folder.read(RUN)
        if not self._folder.write_if(
            RUN, self._content("running"), replaces=None if stored is None else stored.version
        ):
            raise self._taken("has just been taken by another job")
        self._folder.delete(CANCEL)
        self._beating.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Gives the folder back."""
        self._is_over.set()
        self._beating.join(self._limits.stale_after_s)
        if self._is_ours():
            self._folder.write(RUN, self._content("ended"))

    def is_cancelled(self) -> bool:
        """Whether `live-avatar bulk cancel` asked this run to stop."""
        return self._folder.read(CANCEL) is not None

    def _wait_until_gone(self, first: Stored) -> None:
        """Returns once the driver that wrote `first` is seen dead, or its heartbeat stood still for long enough."""
        deadline = time.monotonic() + self._limits.stale_after_s
        while time.monotonic() < deadline and not _is_dead(first):
            now = self._folder.read(RUN)
            if now is not None and now.version != first.version:
                if not _is_running(now):
                    return
                told = _told(now)
                raise self._taken(f"is used by another job, {told.get('run_id')} on {told.get('host')}")
            time.sleep(_LOOK_EVERY_S)

    def _beat_for_ever(self) -> None:
        while not self._is_over.wait(self._limits.heartbeat_every_s):
            try:
                if not self._is_ours():
                    self._on_lost(f'"{self._folder.uri()}" was taken over by another job')
                    return
                self._num_beats += 1
                self._folder.write(RUN, self._content("running"))
            except (StorageError, OutputError):  # the next beat may pass; others wait much longer than for one
                continue

    def _is_ours(self) -> bool:
        stored = self._folder.read(RUN)
        return stored is not None and _told(stored).get("run_id") == self._run_id

    def _content(self, state: str) -> bytes:
        process = this_process("")
        told = {
            **self._about,
            **vars(Machine.this()),
            "run_id": self._run_id,
            "state": state,
            "pid": process.pid,
            "start_ticks": process.start_ticks,
            "started_at": self._started_at,
            "beat": self._num_beats,
        }
        return json.dumps(told, indent=1).encode()

    def _taken(self, what: str) -> InvalidRequestError:
        return InvalidRequestError(f'"{self._folder.uri()}" {what}', remedy=_OLD_RUN, param="out")


def ask_to_cancel(folder: Folder) -> bool:
    """Asks the driver of a folder to stop; False where none works there."""
    stored = folder.read(RUN)
    if stored is None or not _is_running(stored) or _is_dead(stored):
        return False
    folder.write(CANCEL, json.dumps({"asked_at": time.time(), "by": os.getpid()}).encode())
    return True


def is_at_work(folder: Folder) -> bool:
    """Whether a driver works in a folder, as far as one look can tell."""
    stored = folder.read(RUN)
    return stored is not None and _is_running(stored) and not _is_dead(stored)


def _is_running(stored: Stored) -> bool:
    return _told(stored).get("state") == "running"


def _is_dead(stored: Stored) -> bool:
    """Whether the driver was one of this machine, and is no more; of others nothing is known."""
    told, here = _told(stored), Machine.this()
    if any(told.get(name) != value for name, value in vars(here).items()):
        return False
    return not is_alive(ProcessIdentity("", int(told["pid"]), int(told["start_ticks"])))


def _told(stored: Stored) -> dict[str, Any]:
    """Returns what run.json says; one that is spoiled is nobody's."""
    try:
        told = json.loads(stored.content)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
