"""The fleet as admission asks it: what a video needs on the groups of each pool, and how long it takes there."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median

from serve_app.jobs.admission import DoesNotFit, Fits, Nearest
from serve_app.jobs.job import Document
from serve_app.jobs.messages import GroupReport
from serve_app.jobs.submission import Submission
from serve_app.planning.calibration import Calibration
from serve_app.planning.cost import Prediction, predict
from serve_app.planning.feasibility import Alternative, Feasible, NeverFits, fits
from serve_app.planning.geometry import effective_size
from serve_app.planning.hardware import GIB, KINDS, GpuKind, Gpus
from serve_app.planning.host import host_budget
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.network import PUBLISHED, TINY, TINY_CHECKPOINT, DType, ModelDims
from serve_app.planning.workload import WHOLE_SPEECH_SECONDS, Workload
from serve_app.schemas.presets import PRESETS, Preset
from serve_app.schemas.service import PoolConfig
from serve_app.task import CARD_BYTES

log = logging.getLogger(__name__)

_CPU_TFLOPS = 0.1
"""What a core does of the tiny model's arithmetic, as a first guess: `Pace` corrects it from the first video on."""
_PACE_VIDEOS = 5
_CARD_TOLERANCE = 0.01
"""Drivers differ by less in what they keep of a card for themselves."""
_SPEECH_STEP_S = 10.0


class Pace:
    """How long videos take beside what was predicted, by pool: the median of the last few.

    So one video that had to wait for its ranks, or met a machine that was busy, changes nothing.
    """

    def __init__(self) -> None:
        self._ratios: dict[str, deque[float]] = {}

    def learn(self, pool: str, *, seconds: float, predicted_s: float) -> None:
        """Takes a finished video into account."""
        self._ratios.setdefault(pool, deque(maxlen=_PACE_VIDEOS)).append(seconds / predicted_s)

    def knows(self, pool: str) -> bool:
        """Whether any video of the pool was finished."""
        return pool in self._ratios

    def of(self, pool: str) -> float:
        """Returns the factor by which videos take longer than predicted; 1 before the first."""
        ratios = self._ratios.get(pool)
        return median(ratios) if ratios else 1.0


@dataclass(frozen=True)
class _Site:
    """The cards that one group of a pool has, and what is on them."""

    layout: ParallelLayout
    gpus: Gpus
    dims: ModelDims
    dtype: DType
    calibration: Calibration


class Fleet:
    """The pools of a service; a Planner. Verdicts are remembered: the same video is asked for again and again.

    A pool names a kind of card. As soon as one of its groups has seen that a card has less memory than that kind, the
    pool is judged by what was seen; never by more than its kind has.
    """

    def __init__(self, pools: Iterable[PoolConfig], *, calibration: Calibration, cpu_bytes: int) -> None:
        """`cpu_bytes` is the memory of the machine, which the ranks of a group on CPUs share."""
        self.pools: Mapping[str, PoolConfig] = {pool.name: pool for pool in pools}
        self.pace = Pace()
        self._promised = {pool.name: _site(pool, calibration, cpu_bytes) for pool in self.pools.values()}
        self._sites = dict(self._promised)
        self._warned: set[tuple[str, int]] = set()

    def see(self, reports: Iterable[GroupReport]) -> None:
        """Takes into account what all groups tell of their cards; where none does, what was seen last holds."""
        told: dict[str, int] = {}
        for report in reports:
            card_bytes = report.facts.get(CARD_BYTES)
            if card_bytes is not None and report.pool in self.pools and self.pools[report.pool].gpu is not None:
                told[report.pool] = min(card_bytes, told.get(report.pool, card_bytes))
        for pool, card_bytes in told.items():
            self._see_card(pool, card_bytes)

    def card_bytes(self, pool: str) -> int:
        """Returns the memory that a rank of the pool is taken to have."""
        return self._sites[pool].gpus.kind.total_bytes

    def _see_card(self, pool: str, card_bytes: int) -> None:
        promised = self._promised[pool]
        kind = promised.gpus.kind
        if card_bytes >= kind.total_bytes * (1 - _CARD_TOLERANCE):
            self._sites[pool] = promised
            return
        if (pool, card_bytes) not in self._warned:
            self._warned.add((pool, card_bytes))
            facts = {"pool": pool, "kind": kind.name, "promised_bytes": kind.total_bytes, "card_bytes": card_bytes}
            log.warning("card smaller than its kind", extra=facts)
        self._sites[pool] = replace(promised, gpus=replace(promised.gpus, kind=replace(kind, total_bytes=card_bytes)))

    def candidates(self, work: Submission) -> Iterator[str]:
        """Yields the pools that have the model which the video wants."""
        return (name for name, pool in self.pools.items() if pool.model == work.model)

    def judge(self, work: Submission, layout: str) -> Fits | DoesNotFit:
        """Returns the verdict for the groups of pool `layout`, and the seconds at their present pace."""
        site = self._sites[layout]
        verdict = _memory_verdict(site, _memory_case(work.work))
        if isinstance(verdict, DoesNotFit):
            return verdict
        predicted, pace = self._predicted(work.work, layout), self.pace.of(layout)
        return Fits(
            predicted.total_seconds * pace,
            first_frame_s=predicted.first_frame_seconds * pace,
            rank_bytes=verdict,
            card_bytes=site.gpus.kind.total_bytes,
        )

    def predicted_s(self, work: Workload, pool: str) -> float:
        """Returns how long the video takes by arithmetic alone."""
        return self._predicted(work, pool).total_seconds

    def _predicted(self, work: Workload, pool: str) -> Prediction:
        site = self._sites[pool]
        return predict(
            work, site.layout, site.gpus.kind, dtype=site.dtype, calibration=site.calibration, dims=site.dims
        )

    def table(self, pool: str) -> list[Document]:
        """Returns for every preset whether the pool's groups hold it, and how long they take for a second of video."""
        return [self._row(pool, preset) for preset in PRESETS.values()]

    def _row(self, pool: str, preset: Preset) -> Document:
        num_frames = (preset.num_clip or 1) * preset.infer_frames
        work = Workload(
            effective_size(preset.size, preset.size, "area"), preset.infer_frames, preset.sample_steps, num_frames
        )
        row = {"preset": preset.name, "size": str(work.size)}
        verdict = _memory_verdict(self._sites[pool], _memory_case(work))
        if isinstance(verdict, DoesNotFit):
            return {**row, "fits": False, "part": verdict.part, "needed_bytes": verdict.needed_bytes}
        seconds = self.predicted_s(work, pool) * self.pace.of(pool) / work.timeline.seconds
        return {**row, "fits": True, "needed_bytes": max(verdict), "seconds_per_video_second": round(seconds, 3)}

    def disk_bytes(self, work: Submission) -> int:
        """Returns what the files of a video take, its inputs included."""
        site = next(iter(self._sites.values()))
        budget = host_budget(
            work.work,
            site.layout,
            calibration=site.calibration,
            input_bytes=work.input_bytes,
            dtype=site.dtype,
            dims=site.dims,
        )
        return budget.disk_bytes


def _site(pool: PoolConfig, calibration: Calibration, cpu_bytes: int) -> _Site:
    layout = ParallelLayout.parse(pool.layout)
    if pool.gpu is None:
        threads = pool.threads_per_rank or max(1, round(pool.cpus_per_rank))
        shared_bytes = cpu_bytes if pool.cpu_memory_gib is None else round(pool.cpu_memory_gib * GIB)
        kind = GpuKind("cpu", shared_bytes // layout.world_size, _CPU_TFLOPS * threads, 1e9)
    else:
        kind = KINDS[pool.gpu]
    return _Site(
        layout=layout,
        gpus=Gpus(layout.world_size, kind),
        dims=TINY if pool.checkpoint == TINY_CHECKPOINT else PUBLISHED,
        dtype="float32" if pool.gpu is None else "bfloat16",
        calibration=calibration,
    )


def _memory_case(work: Workload) -> Workload:
    """Returns a video of the same memory and one of a few lengths: one verdict then serves many videos.

    Memory sees the speech alone, up to the length that is encoded whole: rounded up, so never too little.
    """
    rounded = math.ceil(work.speech_seconds / _SPEECH_STEP_S) * _SPEECH_STEP_S
    speech_seconds = min(rounded, WHOLE_SPEECH_SECONDS)
    return replace(work, num_frames=work.infer_frames, speech_seconds=speech_seconds)


@lru_cache(maxsize=4096)
def _memory_verdict(site: _Site, work: Workload) -> tuple[int, ...] | DoesNotFit:
    """Returns what each rank needs, in bytes, or why some rank never holds it."""
    verdict = fits(work, site.layout, site.gpus, calibration=site.calibration, dtype=site.dtype, dims=site.dims)
    match verdict:
        case Feasible(ranks):
            return tuple(rank.needed_bytes for rank in ranks)
        case NeverFits():
            nearest = tuple(_nearest(one) for one in verdict.nearest if one.layout == site.layout)
            return DoesNotFit(verdict.part, verdict.needed_bytes, verdict.available_bytes, nearest)


def _nearest(one: Alternative) -> Nearest:
    return Nearest(one.change, str(one.work.size), one.work.infer_frames)
