"""Trials of the verdicts: videos drawn at random, cards drawn close to what the oracle says they need."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from serve_app.planning.calibration import Calibration
from serve_app.planning.feasibility import rank_budgets
from serve_app.planning.geometry import MAX_AREA, Size
from serve_app.planning.hardware import GIB, KINDS, GpuKind, Gpus
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.workload import Workload
from tests.planning.oracle import card_needed

SPREAD = 0.12
"""Cards far from the need prove nothing."""
NEEDLESS_BELOW = 0.9
_LEAST_SHARE = (1 - SPREAD, 1 - SPREAD, 1 / NEEDLESS_BELOW)
"""Every third card is roomy, or needless refusals would hardly come up."""
_WRITTEN = (
    "single",
    "offload=layers",
    "stages=4,vae=1",
    "ulysses=4,weight_shards=4",
    "stages=4,ulysses=2",
    "vae=2",
    "ulysses=2,weight_shards=2",
    "stages=3,vae=2,offload=layers",
    "ulysses=4,weight_shards=4,vae=1",
    "stages=2",
    "ulysses=8,weight_shards=8",
    "ulysses=5,offload=layers",
    "ulysses=2",
    "vae=1",
)
LAYOUTS = tuple(map(ParallelLayout.parse, _WRITTEN))
_WIDEST_ASPECT = 2.5


@dataclass(frozen=True)
class Trial:
    """One verdict: of a video on a card, and what the oracle says that it needs."""

    work: Workload
    layout: ParallelLayout
    card_bytes: int
    needed_bytes: int
    is_admitted: bool

    @property
    def is_false_admit(self) -> bool:
        return self.is_admitted and self.needed_bytes > self.card_bytes

    @property
    def is_roomy(self) -> bool:
        return self.needed_bytes <= NEEDLESS_BELOW * self.card_bytes

    @property
    def is_needless_refusal(self) -> bool:
        return self.is_roomy and not self.is_admitted

    def __str__(self) -> str:
        return (
            f"{self.work.size}, infer_frames {self.work.infer_frames}, {self.work.sample_steps} steps, {self.layout}: "
            f"needs {self.needed_bytes / GIB:.2f} of {self.card_bytes / GIB:.2f} GiB"
        )


@dataclass(frozen=True)
class Score:
    """What trials show."""

    num_trials: int
    false_admits: tuple[Trial, ...]
    num_admitted: int
    num_roomy: int
    num_needless: int

    @property
    def needless_rate(self) -> float:
        return self.num_needless / max(self.num_roomy, 1)

    def __str__(self) -> str:
        return (
            f"{self.num_trials} verdicts: {len(self.false_admits)} false admits, {self.num_admitted} admitted; "
            f"{self.num_needless} of {self.num_roomy} refused needlessly ({self.needless_rate:.1%})"
        )


def draw_videos(count: int, *, seed: int) -> Iterator[tuple[Workload, ParallelLayout]]:
    """Yields videos and layouts; every layout comes up."""
    draw = random.Random(seed)
    for number in range(count):
        yield _draw_video(draw), LAYOUTS[number % len(LAYOUTS)]


def trials_of(
    work: Workload, layout: ParallelLayout, *, num_cards: int, calibration: Calibration, seed: int
) -> list[Trial]:
    """Returns verdicts for cards of sizes drawn around the need."""
    draw = random.Random(seed)
    needed = card_needed(work, layout, calibration)
    cards = [round(needed * draw.uniform(_LEAST_SHARE[number % 3], 1 + SPREAD)) for number in range(num_cards)]
    return [
        Trial(work, layout, card, needed, is_admitted=_is_admitted(work, layout, card, calibration)) for card in cards
    ]


def score(trials: Iterable[Trial]) -> Score:
    listed = list(trials)
    return Score(
        num_trials=len(listed),
        false_admits=tuple(trial for trial in listed if trial.is_false_admit),
        num_admitted=sum(trial.is_admitted for trial in listed),
        num_roomy=sum(trial.is_roomy for trial in listed),
        num_needless=sum(trial.is_needless_refusal for trial in listed),
    )


def _is_admitted(work: Workload, layout: ParallelLayout, card_bytes: int, calibration: Calibration) -> bool:
    kind: GpuKind = replace(KINDS["24"], total_bytes=card_bytes)
    ranks = rank_budgets(work, layout, Gpus(layout.world_size, kind), calibration=calibration)
    return all(rank.is_enough for rank in ranks)


def _draw_video(draw: random.Random) -> Workload:
    while True:
        size = Size(64 * draw.randint(2, 20), 64 * draw.randint(2, 20))
        longer, shorter = max(size.width, size.height), min(size.width, size.height)
        if size.area <= MAX_AREA and longer <= _WIDEST_ASPECT * shorter:
            break
    return Workload(
        size,
        infer_frames=12 * draw.choice((1, 2, 3, 4, 4, 4, 5, 6, 8)),
        sample_steps=draw.choice((2, 3, 4, 4, 4, 5)),
        speech_seconds=draw.choice((5, 20, 60, 600)),
    )
