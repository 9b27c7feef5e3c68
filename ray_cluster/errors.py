"""The errors of gangs and groups: each names the value, the rule and the remedy, and travels between processes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class FailureKind(Enum):
    """How a rank failed. A process that is gone outranks what its neighbours raise because of it."""

    DIED = "died"
    FROZEN = "frozen"
    NO_PROGRESS = "no_progress"
    EXCEPTION = "exception"
    OUT_OF_MEMORY = "out_of_memory"

    @property
    def is_transient(self) -> bool:
        """Whether the same start may well succeed when tried again: what a program raises by itself comes back."""
        return self in (FailureKind.DIED, FailureKind.FROZEN, FailureKind.NO_PROGRESS)


class ClusterError(Exception):
    """Stops a piece of work on the cluster and tells what to do about it."""

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with `args`, which fails where arguments are keyword-only.
        return rebuild_exception, (type(self), self.args, vars(self))


class LocalClusterError(ClusterError):
    """This process gets no cluster: a private one does not start, or one that runs cannot be joined."""


class PlacementError(ClusterError):
    """The bundles of a group have no place. `can_never_fit`: not on the nodes of now, however long one waits."""

    def __init__(self, message: str, *, can_never_fit: bool, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.can_never_fit = can_never_fit


class RankFailedError(ClusterError):
    """A rank failed, and the gang with it: every process of the gang has been killed.

    `rank` is None where no single rank can be named. `cause` is what the program raised, where its class is known to
    this process; `cause_type` and `traceback` are text in any case ("" where the program raised nothing).
    """

    def __init__(
        self,
        kind: FailureKind,
        *,
        rank: int | None,
        role: str,
        detail: str,
        remedy: str,
        cause: Exception | None = None,
        cause_type: str = "",
        traceback: str = "",
    ) -> None:
        who = "gang" if rank is None else f"rank {rank} ({role})"
        super().__init__(f"{who} {_VERBS[kind]}: {detail}", remedy=remedy)
        self.kind = kind
        self.rank = rank
        self.role = role
        self.detail = detail
        self.cause = cause
        self.cause_type = cause_type
        self.traceback = traceback


class GangBusyError(ClusterError):
    """A gang runs one task at a time."""


class GangAbandonedError(ClusterError):
    """Whoever started a gang no longer wants it."""


class GroupUnavailableError(ClusterError):
    """A replica group takes no task: it drains, was stopped, or did not become ready in time."""


class RestartBudgetSpentError(ClusterError):
    """A replica group failed too often in too short a time. `reasons`: what ended each gang, oldest first."""

    def __init__(self, group: str, *, reasons: tuple[str, ...], max_restarts: int, within_s: float) -> None:
        listed = "; ".join(f"{number}) {reason}" for number, reason in enumerate(reasons, start=1))
        super().__init__(
            f"group {group} failed {len(reasons)} times, more than {max_restarts} restarts in {within_s:g} s: {listed}",
            remedy="see the first reason and the log of that rank, then start the group again",
        )
        self.reasons = reasons


_VERBS: Mapping[FailureKind, str] = {
    FailureKind.DIED: "died",
    FailureKind.FROZEN: "is frozen",
    FailureKind.NO_PROGRESS: "makes no progress",
    FailureKind.EXCEPTION: "raised",
    FailureKind.OUT_OF_MEMORY: "ran out of memory",
}


def rebuild_exception(kind: type[Exception], args: tuple[Any, ...], state: Mapping[str, Any]) -> Exception:
    """Returns an exception of `kind` without calling its constructor, whose arguments may differ from `args`."""
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(state)
    return error
