"""Admission: does a video fit, can it be promised, is there room for its files; `plan` and `admit` ask the same.

What fits and how long it takes is planning's to say, how much disk there is the host's: here stand the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Generic, Protocol, TypeVar

from serve_app.jobs.job import Priority
from serve_app.jobs.ledger import Ledger
from serve_app.jobs.quote import Admitted, Demand, Outcome, Reason, Rejected

Work_contra = TypeVar("Work_contra", contravariant=True)
Work = TypeVar("Work")


@dataclass(frozen=True)
class Fits:
    """The video fits every rank of a layout, and takes `seconds` on a group that does nothing else; see Quote."""

    seconds: float
    first_frame_s: float | None = None
    rank_bytes: tuple[int, ...] = ()
    card_bytes: int | None = None


@dataclass(frozen=True)
class Nearest:
    """A change to a request with which it would fit: in words, and as the fields of a request."""

    change: str
    size: str
    infer_frames: int


@dataclass(frozen=True)
class DoesNotFit:
    """Some rank of a layout never holds the video: the part with which it gets too much, in bytes, and what would fit.

    `nearest` are changes to the request, best first.
    """

    part: str
    needed_bytes: int
    available_bytes: int
    nearest: tuple[Nearest, ...] = ()

    @property
    def missing_bytes(self) -> int:
        return self.needed_bytes - self.available_bytes


class Planner(Protocol[Work_contra]):
    """What planning says of a video on one layout of the fleet; never a guess, and the same for the same question."""

    def candidates(self, work: Work_contra) -> Iterable[str]:
        """Returns the layouts whose groups have the model that the video wants."""
        ...

    def judge(self, work: Work_contra, layout: str) -> Fits | DoesNotFit: ...


class Host(Protocol[Work_contra]):
    """What the machine says: nothing, or why inputs and output of a video have no room."""

    def lacks(self, work: Work_contra) -> Lack | None: ...


@dataclass(frozen=True)
class Lack:
    """Memory or disk of the host that is missing now."""

    what: str
    needed_bytes: int
    available_bytes: int


@dataclass
class Admission(Generic[Work]):
    """All that a request has to pass, cheapest answers first."""

    ledger: Ledger
    planner: Planner[Work]
    host: Host[Work]

    def plan(self, work: Work, *, priority: Priority, deadline_s: float | None = None) -> Outcome:
        """Answers what `admit` would, and takes nothing."""
        return self._ask(self.ledger.quote, work, priority, deadline_s)

    def admit(self, job_id: str, work: Work, *, priority: Priority, deadline_s: float | None = None) -> Outcome:
        """Takes the job into the ledger when all say yes; the caller stores it, or cancels it when that fails."""
        return self._ask(partial(self.ledger.admit, job_id), work, priority, deadline_s)

    def _ask(
        self, ledger: Callable[[Demand], Outcome], work: Work, priority: Priority, deadline_s: float | None
    ) -> Outcome:
        verdicts = {layout: self.planner.judge(work, layout) for layout in self.planner.candidates(work)}
        fitting = {layout: verdict for layout, verdict in verdicts.items() if isinstance(verdict, Fits)}
        if not fitting:
            return _never_fits(verdicts)
        lack = self.host.lacks(work)
        if lack is not None:
            return _host_full(lack)
        seconds = {layout: verdict.seconds for layout, verdict in fitting.items()}
        outcome = ledger(Demand(seconds, priority, deadline_s))
        return _with_sizes(outcome, fitting) if isinstance(outcome, Admitted) else outcome


def _with_sizes(admitted: Admitted, fitting: Mapping[str, Fits]) -> Admitted:
    quote = admitted.quote
    fits = fitting[quote.layout]
    return Admitted(
        replace(quote, first_frame_s=fits.first_frame_s, rank_bytes=fits.rank_bytes, card_bytes=fits.card_bytes)
    )


def _never_fits(verdicts: Mapping[str, Fits | DoesNotFit]) -> Rejected:
    """Returns the refusal that names the layout that comes nearest, what does not fit there, and what would."""
    misfits = {layout: verdict for layout, verdict in verdicts.items() if isinstance(verdict, DoesNotFit)}
    if not misfits:
        return Rejected(Reason.NO_GROUP, "no groups are configured for this model")
    layout, least = min(misfits.items(), key=lambda item: item[1].missing_bytes)
    instead = f"; what would fit: {', '.join(one.change for one in least.nearest)}" if least.nearest else ""
    return Rejected(
        Reason.NEVER_FITS,
        f"the video never fits these GPUs: with layout {layout} it needs {least.needed_bytes} of "
        f"{least.available_bytes} bytes on a rank, too much from {least.part} on{instead}",
        figures={
            "layout": layout,
            "part": least.part,
            "needed_bytes": least.needed_bytes,
            "available_bytes": least.available_bytes,
            "nearest": [asdict(one) for one in least.nearest],
        },
    )


def _host_full(lack: Lack) -> Rejected:
    return Rejected(
        Reason.HOST_FULL,
        f"the host has {lack.available_bytes} bytes of {lack.what} left, the video needs {lack.needed_bytes}",
        figures={"what": lack.what, "needed_bytes": lack.needed_bytes, "available_bytes": lack.available_bytes},
    )
