"""What a request has to pass: memory first, then the host, then time; plan and admit agree."""

from __future__ import annotations

from dataclasses import dataclass, field

from serve_app.jobs.admission import Admission, DoesNotFit, Fits, Lack, Nearest
from serve_app.jobs.job import Priority
from serve_app.jobs.quote import Admitted, Reason, Rejected
from tests.jobs.world import World

LAYOUTS = ("single", "stages=4,vae=1")
NEAREST = (Nearest("size 640x384", "640x384", 48), Nearest("infer_frames 36", "704x384", 36))
OTHER_LAYOUT = (Nearest("layout stages=4,vae=1", "704x384", 48),)
TOO_BIG = DoesNotFit("KV cache", needed_bytes=90, available_bytes=80, nearest=NEAREST)


@dataclass
class Table:
    """A planner and a host that know what they are told; a video is a word."""

    verdicts: dict[tuple[str, str], Fits | DoesNotFit]
    lack: Lack | None = None
    layouts: tuple[str, ...] = LAYOUTS
    asked: list[str] = field(default_factory=list)

    def candidates(self, work: str) -> tuple[str, ...]:
        assert work
        return self.layouts

    def judge(self, work: str, layout: str) -> Fits | DoesNotFit:
        return self.verdicts[work, layout]

    def lacks(self, work: str) -> Lack | None:
        self.asked.append(work)
        return self.lack


def admission(table: Table) -> Admission[str]:
    return Admission(World(LAYOUTS).ledger, planner=table, host=table)


def test_a_video_gets_the_layout_that_it_fits() -> None:
    table = Table({("v", "single"): TOO_BIG, ("v", "stages=4,vae=1"): Fits(20.0)})
    outcome = admission(table).admit("job", "v", priority=Priority.STANDARD)
    assert isinstance(outcome, Admitted)
    assert (outcome.quote.layout, outcome.quote.seconds) == ("stages=4,vae=1", 20.0)


def test_what_never_fits_is_refused_with_numbers_and_what_would_fit_before_anything_else_is_asked() -> None:
    nearly = DoesNotFit("decoding", needed_bytes=81, available_bytes=80, nearest=OTHER_LAYOUT)
    table = Table({("v", "single"): TOO_BIG, ("v", "stages=4,vae=1"): nearly})
    gate = admission(table)
    outcome = gate.admit("job", "v", priority=Priority.STANDARD)
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, outcome.retry_after_s) == (Reason.NEVER_FITS, None)
    assert outcome.figures == {
        "layout": "stages=4,vae=1",
        "part": "decoding",
        "needed_bytes": 81,
        "available_bytes": 80,
        "nearest": [{"change": "layout stages=4,vae=1", "size": "704x384", "infer_frames": 48}],
    }
    assert "needs 81 of 80 bytes on a rank, too much from decoding on; what would fit: layout" in outcome.message
    assert (table.asked, gate.ledger.num_waiting) == ([], 0)


def test_a_host_without_room_refuses() -> None:
    fits = {("v", layout): Fits(20.0) for layout in LAYOUTS}
    outcome = admission(Table(fits, Lack("disk", 10, 5))).admit("job", "v", priority=Priority.BULK)
    assert outcome == Rejected(
        Reason.HOST_FULL,
        "the host has 5 bytes of disk left, the video needs 10",
        figures={"what": "disk", "needed_bytes": 10, "available_bytes": 5},
    )


def test_plan_answers_what_admit_would_and_takes_nothing() -> None:
    gate = admission(Table({("v", layout): Fits(20.0) for layout in LAYOUTS}))
    for number in range(8):
        planned = gate.plan("v", priority=Priority.INTERACTIVE, deadline_s=45.0)
        assert gate.plan("v", priority=Priority.INTERACTIVE, deadline_s=45.0) == planned
        assert gate.admit(f"job{number}", "v", priority=Priority.INTERACTIVE, deadline_s=45.0) == planned
    assert gate.ledger.num_waiting == 4
