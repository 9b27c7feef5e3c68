"""What a rank runs, and what it may ask of its gang. This file knows neither Ray nor torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Seat:
    """A rank's place in its gang; `rendezvous` is what rank 0's program answered to `open_rendezvous`."""

    rank: int
    num_ranks: int
    rendezvous: str


@dataclass(frozen=True)
class StartReport:
    """What a rank tells when it is ready.

    Exactly one rank of a gang has `is_output`: its `run` yields the results, those of the others yield nothing.
    `role` names the rank in messages; `facts` are figures worth logging.
    """

    role: str
    is_output: bool
    facts: Mapping[str, int | float | str] = field(default_factory=dict)


class RunControl(Protocol):
    """What a program may ask while it runs a task; every answer comes at once, but for `wait_for_turn`."""

    def note(self, activity: str) -> None:
        """Tells that work goes on, and what it is: a rank that notes nothing for too long counts as hung."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the task shall end early. Only rank 0 is told: it decides, and tells the others with its data."""
        ...

    def wait_for_turn(self, index: int, *, timeout_s: float) -> bool:
        """Waits on rank 0 until the consumer is near enough to result `index`; False when the time is over first.

        This bounds how far a gang runs ahead. It ends early, with True, once the task is cancelled.
        """
        ...


class Unattended:
    """The control of a program that runs in this process: nobody watches, the consumer is always near."""

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        self.is_cancelled = is_cancelled

    def note(self, activity: str) -> None:
        """Nobody asks."""

    def wait_for_turn(self, index: int, *, timeout_s: float) -> bool:  # noqa: ARG002  (the protocol's)
        return True


class RankProgram(Protocol):
    """The work of one rank, made from an import path and keyword options inside the rank's process.

    An exception from any method takes the whole gang down.
    """

    def open_rendezvous(self, host: str) -> str:
        """Called on rank 0 alone, first: opens a meeting point on `host` and returns its address."""
        ...

    def start(self, seat: Seat) -> StartReport:
        """Meets the other ranks and loads what this rank needs; called once, on all ranks together."""
        ...

    def run(self, task: Any, control: RunControl) -> Iterator[Any]:  # noqa: ANN401  (the mechanism never looks inside)
        """Runs one task, on all ranks together; a cancelled task just ends early."""
        ...

    def close(self) -> None:
        """Leaves the others and frees what `start` took; called once at a regular end."""
        ...


def import_object(path: str) -> Any:  # noqa: ANN401  (whoever asks knows what is there)
    """Returns the object at "package.module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
