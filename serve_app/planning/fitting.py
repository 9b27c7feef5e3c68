"""Fits a calibration to measured points, and says how well it foretells a point that it has not seen."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from serve_app.planning.calibration import Calibration
from serve_app.planning.cost import interpolated

SAFETY = 0.02
"""What stays free beside the largest positive residual."""


@dataclass(frozen=True)
class Peak:
    """Bytes of one stretch of work on top of what was there: as measured and as the formula has it."""

    measured_bytes: int
    predicted_bytes: int


@dataclass(frozen=True)
class Point:
    """One size and window on one GPU. `resident_bytes` is what the formulas call exact: weights, caches, stream.

    `total_bytes` is the most that was allocated, at whatever moment.
    """

    size: str
    infer_frames: int
    call_tflop: float
    call_seconds: float
    decode_tflop: float
    decode_seconds: float
    denoise: Peak
    decode: Peak
    resident: Peak
    total_bytes: int

    def predicted_total(self, margin: float) -> float:
        return self.resident.predicted_bytes + margin * max(self.denoise.predicted_bytes, self.decode.predicted_bytes)


@dataclass(frozen=True)
class Origin:
    """Where points come from, and what of the GPU is known: its peak, and what it holds before torch allocates."""

    gpu: str
    driver: str
    torch: str
    commit: str
    date: str
    tflops: float
    context_bytes: int


@dataclass(frozen=True)
class LeftOut:
    """How far the fit to all other points is from this one; positive where more was needed than foretold."""

    point: Point
    memory_error: float
    time_error: float


def fit(points: Sequence[Point], origin: Origin, *, base: Calibration) -> Calibration:
    """Returns the measured calibration; what was not measured (communicators, links, bit rate) stays as in `base`."""
    margin = _margin(points)
    residuals = tuple(round(point.total_bytes / point.predicted_total(margin) - 1, 5) for point in points)
    return replace(
        base,
        kind="measured",
        gpu=origin.gpu,
        driver=origin.driver,
        torch=origin.torch,
        commit=origin.commit,
        date=origin.date,
        context_bytes=origin.context_bytes,
        dynamic_margin=round(margin, 4),
        reserve_fraction=round(max(0.0, *residuals) + SAFETY, 5),
        reserve_bytes=0,
        dit_efficiency=_efficiency([(point.call_tflop, point.call_seconds) for point in points], origin),
        vae_efficiency=_efficiency([(point.decode_tflop, point.decode_seconds) for point in points], origin),
        residuals=residuals,
        step_seconds=_steps(points),
    )


def leave_one_out(points: Sequence[Point]) -> list[LeftOut]:
    """Returns for every point the error of what is fitted to the others; nothing for a point without others."""
    if len(points) < 2:
        return []
    found = []
    for index, point in enumerate(points):
        others = [*points[:index], *points[index + 1 :]]
        foretold = interpolated(_steps(others), point.call_tflop)
        found.append(
            LeftOut(
                point,
                memory_error=point.total_bytes / point.predicted_total(_margin(others)) - 1,
                time_error=point.call_seconds / foretold - 1,
            )
        )
    return found


def as_json(calibration: Calibration, points: Sequence[Point]) -> dict[str, object]:
    """Returns what `calibration.json` holds: the constants, and the points that they were fitted to."""
    return {**asdict(calibration), "points": [asdict(point) for point in points]}


def _margin(points: Sequence[Point]) -> float:
    """Returns by how much a phase exceeds its formula at most; never less than 1."""
    peaks = [peak for point in points for peak in (point.denoise, point.decode)]
    return max(1.0, *(peak.measured_bytes / peak.predicted_bytes for peak in peaks))


def _steps(points: Sequence[Point]) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((round(point.call_tflop, 4), round(point.call_seconds, 6)) for point in points))


def _efficiency(work: Sequence[tuple[float, float]], origin: Origin) -> float:
    return round(statistics.median(tflop / seconds / origin.tflops for tflop, seconds in work), 5)
