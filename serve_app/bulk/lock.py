"""RunLock: one driver per output folder, told by a heartbeat in run.json.

Clocks of two machines may differ, so nobody compares them: who wants the folder watches whether the heartbeat moves.
"""

from __future__ import annotations

import json
import logging
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
from serve_app.errors import AvatarError, InvalidRequestError
from serve_app.schemas.bulk import BulkLimits
from serve_app.storage.base import Folder, Stored

log = logging.getLogger(__name__)

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
            stored = self._gone(stored)
        version = None if stored is None else stored.version
        if not self._folder.write_if(RUN, self._content("running"), replaces=version):
            raise self._taken("has just been taken by another job")
        self._beating.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Gives the folder back."""
        self._is_over.set()
        self._beating.join(self._limits.stale_after_s)
        try:
            self._beat("ended")
        except AvatarError as failure:  # the next driver finds that the heartbeat stands still
            log.warning("end of the run not told", extra={"folder": self._folder.uri(), "error": str(failure)})

    def is_cancelled(self) -> bool:
        """Whether `live-avatar bulk cancel` asked this run to stop; False where the folder does not answer."""
        try:
            stored = self._folder.read(CANCEL)
        except AvatarError as error:  # the next look may pass
            log.warning("cancel not looked for", extra={"folder": self._folder.uri(), "error": str(error)})
            return False
        return stored is not None and _told(stored).get("run_id") == self._run_id

    def _gone(self, first: Stored) -> Stored | None:
        """Returns the run.json to replace once the driver that wrote `first` is seen to be gone.

        What is returned was looked at: a heartbeat that moves after that makes the taking fail.
        """
        now = _next_sign(self._folder, first, stale_after_s=self._limits.stale_after_s)
        if now is not None and now is not first and _is_running(now):
            raise self._taken(f"is used by another job, {_who(now)}")
        return now

    def _beat_for_ever(self) -> None:
        while not self._is_over.wait(self._limits.heartbeat_every_s):
            try:
                why_lost = self._beat("running")
            except AvatarError as error:  # the next beat may pass; others wait much longer than for one
                log.warning("heartbeat not written", extra={"folder": self._folder.uri(), "error": str(error)})
                continue
            if why_lost:
                self._on_lost(why_lost)
                return

    def _beat(self, state: str) -> str:
        """Tells that this driver is there, or why the folder is no longer its own; then it writes nothing."""
        stored = self._folder.read(RUN)
        if stored is None:
            return f'"{self._folder.uri(RUN)}" is gone: somebody removed it, and another job may work there now'
        if _told(stored).get("run_id") != self._run_id:
            return f'"{self._folder.uri()}" was taken over by another job, {_who(stored)}'
        self._num_beats += 1
        # Where another job took it in this moment, the next beat finds out.
        self._folder.write_if(RUN, self._content(state), replaces=stored.version)
        return ""

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
    asked = {"run_id": _told(stored).get("run_id"), "asked_at": time.time(), "by": os.getpid()}
    folder.write(CANCEL, json.dumps(asked).encode())
    return True


def has_lost_driver(folder: Folder, *, stale_after_s: float) -> bool:
    """Whether a run began here whose driver neither told its end nor lives."""
    stored = folder.read(RUN)
    if stored is None or not _is_running(stored):
        return False
    if _is_near(stored):
        return _is_dead(stored)
    return _next_sign(folder, stored, stale_after_s=stale_after_s) is stored


def _next_sign(folder: Folder, first: Stored, *, stale_after_s: float) -> Stored | None:
    """Returns what run.json becomes; `first`, which tells of a run, once its driver is seen to be gone.

    It is seen dead, or its heartbeat stood still for so long.
    """
    deadline = time.monotonic() + stale_after_s
    while time.monotonic() < deadline and not _is_dead(first):
        now = folder.read(RUN)
        if now is None or now.version != first.version:
            return now
        time.sleep(min(_LOOK_EVERY_S, stale_after_s / 10))
    return first


def _is_running(stored: Stored) -> bool:
    return _told(stored).get("state") == "running"


def _is_dead(stored: Stored) -> bool:
    """Whether the driver was one of this machine, and is no more; of others nothing is known."""
    told = _told(stored)
    return _is_near(stored) and not is_alive(ProcessIdentity("", int(told["pid"]), int(told["start_ticks"])))


def _is_near(stored: Stored) -> bool:
    """Whether the driver is, or was, one of this machine."""
    told = _told(stored)
    return all(told.get(name) == value for name, value in vars(Machine.this()).items())


def _who(stored: Stored) -> str:
    told = _told(stored)
    return f"{told.get('run_id')} on {told.get('host')}"


def _told(stored: Stored) -> dict[str, Any]:
    """Returns what run.json says; one that is spoiled is nobody's."""
    try:
        told = json.loads(stored.content)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
