"""Watches the ranks of a gang, and ends all of them at the first failure."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_cluster.errors import FailureKind, RankFailedError
from ray_cluster.processes import ProcessIdentity, end_processes
from ray_cluster.raised import Raised, is_out_of_memory
from ray_cluster.rank_actor import Heartbeat

log = logging.getLogger(__name__)

LOOK_S = 1.5
"""The longest time between two looks at a stopwatch that counts."""
GRACE_S = 0.5
"""How long Ray has to end a process, which it logs as intended; it takes 0.03 s, but 5 s for a stopped one."""
OnFailure = Callable[[RankFailedError], None]


class Stopwatch:
    """Counts the time between looks at it, but no more than a moment for each.

    A process that was stopped, or a laptop that slept, does not blame the ranks for that time.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self._seconds = 0.0
        self._looked_at = time.monotonic()

    def seconds(self) -> float:
        """Returns the time so far; meant to be asked once a second or more often."""
        now = time.monotonic()
        self._seconds += min(now - self._looked_at, LOOK_S)
        self._looked_at = now
        return self._seconds


class GangWatch:
    """Asks every rank for a heartbeat every `every_s` seconds, on a thread of its own, whether a task runs or not.

    The first failure wins: it is kept, all ranks are killed, then `on_failure` hears of it.
    """

    def __init__(
        self, name: str, actors: Sequence[Any], *, every_s: float, kill_timeout_s: float, on_failure: OnFailure
    ) -> None:
        self._name = name
        self._actors = actors
        self._every_s = every_s
        self._kill_timeout_s = kill_timeout_s
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._failure: RankFailedError | None = None
        self._is_over = threading.Event()
        self._limit_s = float("inf")
        self._roles = ["starting"] * len(actors)
        self._beats: list[Heartbeat | None] = [None] * len(actors)
        self._heard_at = [0.0] * len(actors)
        self._thread = threading.Thread(target=self._watch, name=f"watch-{name}", daemon=True)

    def start(self, *, limit_s: float) -> None:
        """Begins; a rank that answered once and then not for `limit_s` counts as frozen."""
        self._limit_s = limit_s
        self._thread.start()

    def accept(self, roles: Sequence[str], *, limit_s: float) -> None:
        """The gang stands: messages call the ranks by their roles, and this is the limit from now on."""
        self._roles = list(roles)
        self._limit_s = limit_s

    def stop(self) -> None:
        """Ends the watch; what happens to the ranks afterwards is no failure."""
        with self._lock:
            self._is_over.set()

    @property
    def failure(self) -> RankFailedError | None:
        """The first failure; when it is told, every rank is dead."""
        with self._lock:
            return self._failure

    def heartbeats(self) -> list[Heartbeat]:
        """Returns the last heartbeat of every rank that answered yet."""
        return [beat for beat in self._beats if beat is not None]

    def num_notes(self) -> int:
        """Returns how often the ranks noted progress: work goes on as long as this grows."""
        return sum(beat.num_notes for beat in self.heartbeats())

    def describe(self) -> str:
        """Returns every rank's role, activity and the time since its last note."""
        return "; ".join(self._described(rank) for rank in range(len(self._actors)))

    def raised(self, rank: int, raised: Raised) -> RankFailedError:
        """Returns the error for what the program of a rank raised."""
        kind = FailureKind.OUT_OF_MEMORY if raised.is_out_of_memory else FailureKind.EXCEPTION
        return RankFailedError(
            kind,
            rank=rank,
            role=self._roles[rank],
            detail=f"{raised.type_name}: {raised.text}",
            remedy="take a smaller task or more memory"
            if raised.is_out_of_memory
            else "see the traceback; the same task may fail again",
            cause=raised.cause(),
            cause_type=raised.type_name,
            traceback=raised.traceback,
        )

    def lost(self, rank: int, error: Exception) -> RankFailedError:
        """Returns the error for what Ray says about a rank: its process or node is gone."""
        if isinstance(error, ray.exceptions.RayTaskError):  # a task or result that does not pickle, or our own bug
            return self.raised(rank, Raised.of(error.cause if isinstance(error.cause, Exception) else error))
        is_memory = is_out_of_memory(error) or "low on memory" in str(error)
        return RankFailedError(
            FailureKind.OUT_OF_MEMORY if is_memory else FailureKind.DIED,
            rank=rank,
            role=self._roles[rank],
            detail=f"{exit_text(error)} (it was: {self._described(rank)})",
            remedy="take a smaller task or more memory"
            if is_memory
            else "killed by signal 9 is often the kernel's OOM killer (see dmesg); of others Ray's log says more",
        )

    def stuck(self, what: str) -> RankFailedError:
        """Returns the error for a gang whose ranks live but do not get on."""
        return RankFailedError(
            FailureKind.NO_PROGRESS,
            rank=None,
            role="",
            detail=f"{what}: {self.describe()}",
            remedy="the rank whose note is oldest is the likely cause; raise the limit if the work is only slow",
        )

    def fail(self, error: RankFailedError) -> RankFailedError:
        """Kills every rank for this reason, unless that was done already; returns the first reason."""
        with self._lock:
            if self._failure is not None:
                return self._failure
            self._failure = error
            if self._is_over.is_set():  # stopped: what happens then is no failure
                return error
            self._is_over.set()
            self.kill()
        facts = {"kind": error.kind.value, "rank": error.rank, "error": str(error), "traceback": error.traceback}
        log.error("gang failed", extra={"gang": self._name, **facts})
        self._on_failure(error)
        return error

    def kill(self) -> None:
        """Ends every rank for sure: first by Ray, then what is left by SIGKILL on its node."""
        for actor in self._actors:
            ray.kill(actor)
        processes = [beat.process for beat in self.heartbeats()]
        left = _kill_everywhere(processes, timeout_s=self._kill_timeout_s)
        if left:
            log.error("ranks survive", extra={"gang": self._name, "pids": [process.pid for process in left]})

    def _described(self, rank: int) -> str:
        beat = self._beats[rank]
        if beat is None:
            return f"rank {rank} ({self._roles[rank]}): process not up yet"
        silent_s = time.monotonic() - self._heard_at[rank]
        silence = f", no heartbeat for {silent_s:.1f} s" if silent_s > 2 * self._every_s else ""
        return f"rank {rank} ({self._roles[rank]}): {beat.activity!r} {beat.age_s + silent_s:.1f} s ago{silence}"

    def _watch(self) -> None:
        asked: dict[Any, tuple[int, Stopwatch]] = {}
        while not self._is_over.is_set():
            round_at = time.monotonic()
            for rank in set(range(len(self._actors))) - {rank for rank, _ in asked.values()}:
                asked[self._actors[rank].heartbeat.remote()] = rank, Stopwatch()
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=self._every_s, fetch_local=False)
            for call in answered:
                rank, _ = asked.pop(call)
                self._hear(rank, call)
            self._look_for_frozen(asked.values())
            self._is_over.wait(max(0.0, self._every_s - (time.monotonic() - round_at)))

    def _hear(self, rank: int, call: Any) -> None:  # noqa: ANN401
        try:
            beat = ray.get(call)
        except Exception as error:
            if not self._is_over.is_set():
                self.fail(self.lost(rank, error))
            return
        self._heard_at[rank] = time.monotonic()
        self._beats[rank] = beat

    def _look_for_frozen(self, asked: Iterable[tuple[int, Stopwatch]]) -> None:
        for rank, silence in asked:
            silent_s = silence.seconds()
            if self._beats[rank] is not None and silent_s > self._limit_s and not self._is_over.is_set():
                self.fail(self._frozen(rank, silent_s))

    def _frozen(self, rank: int, silent_s: float) -> RankFailedError:
        return RankFailedError(
            FailureKind.FROZEN,
            rank=rank,
            role=self._roles[rank],
            detail=f"no heartbeat for {silent_s:.1f} s, the limit is {self._limit_s:g} s: {self.describe()}",
            remedy="its process is stopped, swapped out, or holds the interpreter; see its node",
        )


def root_cause(errors: Sequence[RankFailedError], raised_at: Sequence[float]) -> RankFailedError:
    """Returns the error that explains the others: a rank that is gone, else the exception that came first.

    Of what is gone no exception is known; a neighbour may tell of it before Ray does.
    """
    order = sorted(range(len(errors)), key=lambda i: (bool(errors[i].cause_type), raised_at[i]))
    return errors[order[0]]


def _kill_everywhere(processes: Sequence[ProcessIdentity], *, timeout_s: float) -> list[ProcessIdentity]:
    """Kills processes on their nodes: here directly, elsewhere by a task that is pinned there and takes nothing."""
    here = ray.get_runtime_context().get_node_id()
    as_remote: Any = ray.remote(num_cpus=0, max_retries=0)
    remote = as_remote(end_processes)
    calls = []
    for node_id in {process.node_id for process in processes} - {here}:
        pinned = NodeAffinitySchedulingStrategy(node_id, soft=False)
        there = [process for process in processes if process.node_id == node_id]
        calls.append(remote.options(scheduling_strategy=pinned).remote(there, grace_s=GRACE_S, timeout_s=timeout_s))
    near = [process for process in processes if process.node_id == here]
    left = end_processes(near, grace_s=GRACE_S, timeout_s=timeout_s)
    for call in calls:
        try:
            left += ray.get(call, timeout=2 * timeout_s)
        except ray.exceptions.RayError as error:  # the node is gone, and its processes with it
            log.warning("node not reached", extra={"error": str(error)})
    return left


def exit_text(error: Exception) -> str:
    """Returns Ray's words about the end of a process, without who it was and the causes that it lists for any end."""
    lines = [line.strip() for line in str(error).partition("Some common causes include")[0].splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("class_name:", "actor_id:", "namespace:")))
