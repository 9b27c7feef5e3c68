"""A RankProgram of the standard library: ranks hand numbers down a chain of pipes, the last one yields them."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ray_cluster.program import RunControl, Seat, StartReport

END, MAX_RANKS = -1, 8


@dataclass(frozen=True)
class Item:
    """A result of the last rank."""

    index: int
    label: str


@dataclass(frozen=True)
class FakeTask:
    """`acts`: what happens, by rank and index; `begun`: a file where rank 0 writes the index that it begins."""

    num_items: int
    label: str = ""
    acts: Mapping[tuple[int, int], str] = field(default_factory=dict)
    begun: Path | None = None


class RefusalError(Exception):
    """Needs its keyword, as errors of the product do."""

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class OutOfMemoryError(RuntimeError):
    """Called as torch calls its own."""


class UnpicklableError(Exception):
    """Holds what no other process can have."""


def act(name: str) -> None:
    """Misbehaves."""
    match name:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            threading.Event().wait(60)  # the other threads stop first
        case "raise":
            raise RefusalError("no such voice", remedy="take another")
        case "memory":
            raise MemoryError("of the machine")
        case "gpu memory":
            raise OutOfMemoryError("of the GPU")
        case "hang":
            threading.Event().wait(60)
        case "unpicklable":
            raise UnpicklableError(threading.Lock())
        case "exit":
            os._exit(3)


class FakeProgram:
    """Rank r writes into the pipe of rank r + 1; a neighbour that dies is an end of file or a broken pipe."""

    def __init__(self, *, folder: Path, at_start: Mapping[int, str] | None = None, num_outputs: int = 1) -> None:
        self._folder = folder
        self._at_start = at_start or {}
        self._num_outputs = num_outputs

    def open_rendezvous(self, host: str) -> str:
        pipes = Path(tempfile.mkdtemp(dir=self._folder))
        for rank in range(MAX_RANKS):
            os.mkfifo(pipes / str(rank))
        (pipes / "host").write_text(host)
        return str(pipes)

    def start(self, seat: Seat) -> StartReport:
        act(self._at_start.get(seat.rank, ""))
        self._rank, self._last = seat.rank, seat.num_ranks - 1
        pipes = Path(seat.rendezvous)
        self._inbox = (pipes / str(seat.rank)).open() if seat.rank > 0 else None
        self._outbox = (pipes / str(seat.rank + 1)).open("w", buffering=1) if seat.rank < self._last else None
        role = "source" if seat.rank == 0 else "sink" if seat.rank == self._last else "middle"
        facts = {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "FAKE_COLOUR")}
        return StartReport(role, is_output=seat.rank > self._last - self._num_outputs, facts=facts)

    def run(self, task: FakeTask, control: RunControl) -> Iterator[object]:
        for index in self._own_indices(task, control) if self._inbox is None else self._read_indices():
            act(task.acts.get((self._rank, index), ""))
            control.note(f"item {index}")
            if self._outbox is None or task.label == "everyone":
                yield threading.Lock() if task.label == "lock" else Item(index, task.label)
            else:
                self._outbox.write(f"{index}\n")
        if self._outbox is not None:
            self._outbox.write(f"{END}\n")

    def close(self) -> None:
        (self._folder / f"closed-{self._rank}").touch()

    def _own_indices(self, task: FakeTask, control: RunControl) -> Iterator[int]:
        for index in range(task.num_items):
            while not control.wait_for_turn(index, timeout_s=1):
                pass
            if control.is_cancelled():
                return
            if task.begun is not None:
                task.begun.write_text(str(index))
            yield index

    def _read_indices(self) -> Iterator[int]:
        assert self._inbox is not None
        while (line := self._inbox.readline()) != f"{END}\n":
            if not line:
                raise ConnectionError("the rank before is gone")
            yield int(line)
