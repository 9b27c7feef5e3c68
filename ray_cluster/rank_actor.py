"""The process of one rank: runs its program on one thread and answers the gang on another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import ray.util

from ray_cluster.processes import ProcessIdentity, resident_bytes, this_process
from ray_cluster.program import RankProgram, Seat, StartReport, import_object
from ray_cluster.raised import Raised

T = TypeVar("T")


@dataclass(frozen=True)
class Heartbeat:
    """What a rank answers every second. `age_s`: the time since its last note."""

    rank: int
    process: ProcessIdentity
    num_notes: int
    activity: str
    age_s: float
    resident_bytes: int


class RankControl:
    """What the program and the gang tell each other while a task runs; implements RunControl.

    Runs are numbered: a message that belongs to another run does no harm.
    """

    def __init__(self, *, window: int) -> None:
        """`window`: how many results rank 0 may begin beyond those that the consumer took."""
        self._window = window
        self._changed = threading.Condition()
        self._run, self._cancelled_run = 0, -1
        self._taken_run, self._num_taken = 0, 0
        self._num_notes = 0
        self._activity = "process started"
        self._noted_at = time.monotonic()

    def note(self, activity: str) -> None:
        """See RunControl."""
        with self._changed:
            self._num_notes += 1
            self._activity = activity
            self._noted_at = time.monotonic()

    def is_cancelled(self) -> bool:
        """See RunControl."""
        return self._cancelled_run == self._run

    def wait_for_turn(self, index: int, *, timeout_s: float) -> bool:
        """See RunControl."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_cancelled() or self._is_near(index), timeout_s)

    def begin(self, run: int) -> None:
        """A run begins on this rank."""
        with self._changed:
            self._run = run
        self.note("begins")

    def cancel(self, run: int) -> None:
        """The run shall end early, also one that has not begun yet."""
        with self._changed:
            self._cancelled_run = max(run, self._cancelled_run)
            self._changed.notify_all()

    def advance(self, run: int, num_taken: int) -> None:
        """The consumer took the first `num_taken` results of the run."""
        with self._changed:
            self._taken_run, self._num_taken = max((run, num_taken), (self._taken_run, self._num_taken))
            self._changed.notify_all()

    def last_note(self) -> tuple[int, str, float]:
        """Returns the number of notes, the last one and its age in seconds."""
        with self._changed:
            return self._num_notes, self._activity, time.monotonic() - self._noted_at

    def _is_near(self, index: int) -> bool:
        num_taken = self._num_taken if self._taken_run == self._run else 0
        return index < num_taken + self._window


class RankActor:
    """A Ray actor around a RankProgram. What the program raises comes back as the value Raised."""

    def __init__(self, rank: int, *, window: int) -> None:
        self._rank = rank
        self._control = RankControl(window=window)
        self._process = this_process(ray.get_runtime_context().get_node_id())
        self._program: RankProgram | None = None

    def load(self, program: str, options: Mapping[str, Any]) -> Raised | None:
        """Imports and makes the program, on the thread that runs it."""

        def make() -> None:
            self._program = import_object(program)(**options)

        return self._guarded("loads its program", make)

    def open_rendezvous(self) -> str | Raised:
        """Opens the meeting point on this node; returns its address."""
        util: Any = ray.util
        host = util.get_node_ip_address()
        return self._guarded("opens the rendezvous", lambda: self._loaded.open_rendezvous(host))

    def start(self, seat: Seat) -> StartReport | Raised:
        """Meets the other ranks."""
        return self._guarded("starts", lambda: self._loaded.start(seat))

    def follow(self, run: int, task: Any) -> Raised | None:  # noqa: ANN401
        """Runs a task on a rank that yields nothing."""

        def exhaust() -> None:
            for _ in self._run(run, task):
                raise TypeError("its run yields a result, but its start report says is_output=False")

        return self._guarded("runs", exhaust)

    def stream(self, run: int, task: Any) -> Iterator[Any]:  # noqa: ANN401
        """Runs a task on the output rank and yields its results; what the program raises comes as the last one."""
        try:
            yield from self._run(run, task)
        except Exception as error:
            yield Raised.of(error)

    def close(self) -> Raised | None:
        """Ends the program in good order."""
        return self._guarded("closes", lambda: self._loaded.close())

    @ray.method(concurrency_group="control")
    def heartbeat(self) -> Heartbeat:
        """Answers even while the program works."""
        num_notes, activity, age_s = self._control.last_note()
        return Heartbeat(self._rank, self._process, num_notes, activity, age_s, resident_bytes())

    @ray.method(concurrency_group="control")
    def cancel(self, run: int) -> None:
        """See RankControl."""
        self._control.cancel(run)

    @ray.method(concurrency_group="control")
    def advance(self, run: int, num_taken: int) -> None:
        """See RankControl."""
        self._control.advance(run, num_taken)

    @property
    def _loaded(self) -> RankProgram:
        assert self._program is not None, "load comes first"
        return self._program

    def _run(self, run: int, task: Any) -> Iterator[Any]:  # noqa: ANN401
        self._control.begin(run)
        yield from self._loaded.run(task, self._control)
        self._control.note("is done")

    def _guarded(self, activity: str, work: Callable[[], T]) -> T | Raised:
        self._control.note(activity)
        try:
            return work()
        except Exception as error:
            return Raised.of(error)
