"""Feasibility: does a video fit these cards in this layout; and if not, what does not fit, and what would instead.

A rank fits when parts + margin * worst phase + reserve <= the card's total memory. All ranks must.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from serve_app.planning.calibration import Calibration
from serve_app.planning.cost import predict
from serve_app.planning.geometry import FRAMES_PER_BLOCK, SIZE_MULTIPLE, Size
from serve_app.planning.hardware import GIB, Gpus
from serve_app.planning.layout import OFFLOADS, ParallelLayout, RankPlace, check_columns, check_layout
from serve_app.planning.memory import Part, RankMemory, estimate, estimates
from serve_app.planning.network import PUBLISHED, DType, ModelDims
from serve_app.planning.workload import Workload

MAX_NEAREST = 5
_ASPECT_TOLERANCE = math.log(1.25)
"""A smaller size may differ by so much in aspect ratio: what a portrait of about that shape would get."""


@dataclass(frozen=True)
class RankBudget:
    """One rank's memory beside its card; `lines` add up to `needed_bytes`: reserve, parts, worst phase with margin."""

    place: RankPlace
    lines: tuple[Part, ...]
    available_bytes: int

    @property
    def needed_bytes(self) -> int:
        return sum(line.num_bytes for line in self.lines)

    @property
    def is_enough(self) -> bool:
        return self.needed_bytes <= self.available_bytes

    @property
    def first_too_much(self) -> Part:
        """The line with which the sum first passes the card."""
        total = 0
        for line in self.lines:
            total += line.num_bytes
            if total > self.available_bytes:
                return line
        raise AssertionError("all lines fit")


@dataclass(frozen=True)
class Alternative:
    """Something that does fit: what is changed, and the largest need of its ranks."""

    work: Workload
    layout: ParallelLayout
    needed_bytes: int
    change: str


@dataclass(frozen=True)
class Feasible:
    """Every rank fits. `remarks` say what is legal but odd."""

    ranks: tuple[RankBudget, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeverFits:
    """Some rank never fits these cards, whatever runs beside it; the bytes are of the rank that needs the most."""

    part: str
    rank: RankPlace
    needed_bytes: int
    available_bytes: int
    nearest: tuple[Alternative, ...]
    ranks: tuple[RankBudget, ...]
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        missing = (self.needed_bytes - self.available_bytes) / GIB
        return (
            f"never fits: rank {self.rank.rank} ({self.rank}) needs {self.needed_bytes / GIB:.2f} GiB of "
            f"{self.available_bytes / GIB:.2f} GiB, {missing:.2f} GiB too much; what no longer fits is: {self.part}"
        )


def fits(
    work: Workload,
    layout: ParallelLayout,
    gpus: Gpus,
    *,
    calibration: Calibration,
    dtype: DType = "bfloat16",
    dims: ModelDims = PUBLISHED,
) -> Feasible | NeverFits:
    """Returns the verdict for every rank, and where it is a no, the nearest that would be a yes.

    Raises InvalidRequestError when the layout does not suit the model or the picture. It may need fewer cards than
    there are; more than there are is a mistake of the caller, who knows what to tell (`plan_report`, admission).
    """
    check_columns(layout, columns=work.size.latent_width)
    remarks = check_layout(layout, num_heads=dims.dit.num_heads, sample_steps=work.sample_steps)
    ranks = rank_budgets(work, layout, gpus, calibration=calibration, dtype=dtype, dims=dims)
    if all(rank.is_enough for rank in ranks):
        return Feasible(ranks, remarks)
    worst = max(ranks, key=lambda rank: rank.needed_bytes)
    return NeverFits(
        part=worst.first_too_much.name,
        rank=worst.place,
        needed_bytes=worst.needed_bytes,
        available_bytes=worst.available_bytes,
        nearest=tuple(_Fleet(gpus, calibration, dtype, dims).nearest(work, layout)),
        ranks=ranks,
        remarks=remarks,
    )


def rank_budgets(
    work: Workload,
    layout: ParallelLayout,
    gpus: Gpus,
    *,
    calibration: Calibration,
    dtype: DType = "bfloat16",
    dims: ModelDims = PUBLISHED,
) -> tuple[RankBudget, ...]:
    """Returns every rank's memory beside its card."""
    memories = estimate(work, layout, dtype=dtype, calibration=calibration, dims=dims)
    return tuple(_budget(memory, gpus, calibration) for memory in memories)


def _budget(memory: RankMemory, gpus: Gpus, calibration: Calibration) -> RankBudget:
    margin, total = calibration.dynamic_margin, gpus.kind.total_bytes
    phase = memory.worst_phase(margin=margin)
    # The reserve first: what does not fit is then something that a user can change.
    reserve = Part("reserve", calibration.reserve(total))
    lines = (reserve, *memory.parts_during(phase), Part(phase.name, phase.with_margin(margin)))
    return RankBudget(memory.place, lines, total)


def layouts_for(work: Workload, num_gpus: int, *, num_heads: int) -> Iterator[ParallelLayout]:
    """Yields the layouts of this version for this video: at most so many cards, and none of them idle."""
    for stages in range(1, min(num_gpus, work.sample_steps) + 1):
        for ulysses in range(1, num_gpus // stages + 1):
            for vae in (0, 1):
                if num_heads % ulysses == 0 and stages * ulysses + vae <= num_gpus:
                    yield from (one for one in _variants(stages, ulysses, vae) if _can_decode(work, one))


def _can_decode(work: Workload, layout: ParallelLayout) -> bool:
    return len(layout.decoding_ranks) <= work.size.latent_width


def smaller_sizes(size: Size) -> list[Size]:
    """Returns the sizes of the 64 grid with less area and about the same aspect ratio, the largest first."""
    sides = range(SIZE_MULTIPLE, 2 * max(size.width, size.height), SIZE_MULTIPLE)
    sizes = [Size(width, height) for width in sides for height in sides if width * height < size.area]
    alike = [one for one in sizes if _difference(one, size) <= _ASPECT_TOLERANCE]
    return sorted(alike, key=lambda one: (-one.area, _difference(one, size)))


@dataclass(frozen=True)
class _Fleet:
    """What judging needs besides video and layout."""

    gpus: Gpus
    calibration: Calibration
    dtype: DType
    dims: ModelDims

    def nearest(self, work: Workload, layout: ParallelLayout) -> list[Alternative]:
        """Returns what fits instead: the same video in another layout, then the largest sizes, the longest windows."""
        others = [other for other in self._by_speed(work) if other != layout]
        tried = (self._alternative(work, other, f"layout {other}") for other in others)
        fastest = next((found for found in tried if found), None)
        own = [layout] if layout.world_size <= self.gpus.count else []
        choices = [own] if fastest else [own, others]
        sizes = {self._largest_size(work, layouts) for layouts in choices}
        windows = {self._longest_window(work, layouts) for layouts in choices}
        found = [one for one in (fastest, *sizes, *windows) if one is not None]
        return sorted(found, key=lambda one: (-one.work.infer_frames, -one.work.size.area, str(one.layout)))[
            :MAX_NEAREST
        ]

    def _largest_size(self, work: Workload, layouts: Iterable[ParallelLayout]) -> Alternative | None:
        tried = (
            self._alternative(replace(work, size=size), layout, f"size {size}")
            for size in smaller_sizes(work.size)
            for layout in layouts
        )
        return next((found for found in tried if found), None)

    def _longest_window(self, work: Workload, layouts: Iterable[ParallelLayout]) -> Alternative | None:
        tried = (
            self._alternative(replace(work, infer_frames=frames), layout, f"infer_frames {frames}")
            for frames in range(work.infer_frames - FRAMES_PER_BLOCK, 0, -FRAMES_PER_BLOCK)
            for layout in layouts
        )
        return next((found for found in tried if found), None)

    def _alternative(self, work: Workload, layout: ParallelLayout, change: str) -> Alternative | None:
        if not _can_decode(work, layout):
            return None
        most = 0
        for memory in estimates(work, layout, dtype=self.dtype, calibration=self.calibration, dims=self.dims):
            rank = _budget(memory, self.gpus, self.calibration)
            if not rank.is_enough:
                return None
            most = max(most, rank.needed_bytes)
        return Alternative(work, layout, most, change)

    def _by_speed(self, work: Workload) -> list[ParallelLayout]:
        """Returns the layouts, the fastest first; of equals the one with fewer ranks."""
        named = layouts_for(work, self.gpus.count, num_heads=self.dims.dit.num_heads)
        return sorted(named, key=lambda layout: (self._period_seconds(work, layout), layout.world_size))

    def _period_seconds(self, work: Workload, layout: ParallelLayout) -> float:
        predicted = predict(
            work, layout, self.gpus.kind, dtype=self.dtype, calibration=self.calibration, dims=self.dims
        )
        return predicted.period_seconds


def _variants(stages: int, ulysses: int, vae: int) -> Iterator[ParallelLayout]:
    for offload in OFFLOADS:
        yield ParallelLayout(stages=stages, ulysses=ulysses, vae=vae, offload=offload)
    if stages == 1 and ulysses > 1:
        yield ParallelLayout(ulysses=ulysses, vae=vae, weight_shards=ulysses)


def _difference(one: Size, other: Size) -> float:
    """Returns how far the aspect ratios of two sizes are apart."""
    return abs(math.log(one.width * other.height / (one.height * other.width)))
