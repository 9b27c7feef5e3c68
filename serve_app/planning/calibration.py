"""Calibration: the constants that arithmetic cannot give, read from `calibration.json` with where they come from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from serve_app.errors import InvalidRequestError, shown

DEFAULT_FILE = Path(__file__).with_name("calibration.json")

Kind = Literal["analytic", "measured"]


@dataclass(frozen=True)
class Calibration:
    """Constants of memory (bytes) and time (fractions of a card's peak), and their origin.

    "analytic": start values, nothing measured. "measured": by `engine.calibrate` on `gpu` at `commit` on `date`;
    `residuals` are measured minus predicted peaks, relative to the prediction.
    """

    kind: Kind
    gpu: str
    driver: str
    torch: str
    commit: str
    date: str
    context_bytes: int
    communicator_bytes: int
    dynamic_margin: float
    reserve_fraction: float
    reserve_bytes: int
    dit_efficiency: float
    vae_efficiency: float
    host_link_bytes_per_second: float
    load_bytes_per_second: float
    video_bits_per_pixel: float
    residuals: tuple[float, ...] = ()
    step_seconds: tuple[tuple[float, float], ...] = ()
    """(TFLOP, seconds) of measured calls, by TFLOP."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value that no calibration can have."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind {shown(self.kind)} is neither analytic nor measured")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "str" and not isinstance(value, str):
                raise ValueError(f"{field.name} {shown(value)} is not text")
            if field.type in ("int", "float"):
                _check_number(field.name, value, least=_LEAST.get(field.name))
        for number in (number for point in self.step_seconds for number in point):
            _check_number("step_seconds", number, least=None)

    def reserve(self, total_bytes: int) -> int:
        """Returns what stays free of a card of `total_bytes`.

        Analytic: 5 % and 0.3 GiB (BUDGETS start values). Measured: the largest positive residual and 2 %.
        """
        return round(self.reserve_fraction * total_bytes) + self.reserve_bytes


_LEAST = {"context_bytes": 0, "communicator_bytes": 0, "reserve_bytes": 0, "reserve_fraction": 0, "dynamic_margin": 1}
"""All other numbers are above 0."""


def _check_number(name: str, value: object, *, least: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_allowed(value, least):
        rule = "above 0" if least is None else f"{least} or more"
        raise ValueError(f"{name} {shown(value)} is not a number {rule}")


def _is_allowed(value: float, least: int | None) -> bool:
    return math.isfinite(value) and (value > 0 if least is None else value >= least)


@cache
def load_calibration(path: Path = DEFAULT_FILE) -> Calibration:
    """Reads a calibration; raises InvalidRequestError when the file is none."""
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InvalidRequestError(
            f"{path} is no calibration: {error}",
            remedy="make it with `python -m serve_app.engine.calibrate`",
            param="calibration",
        ) from error


def _from_json(values: Mapping[str, Any]) -> Calibration:
    known = {field.name for field in fields(Calibration)}
    unknown = sorted(set(values) - known - {"comment", "points"})
    if unknown:
        raise ValueError(f"{unknown[0]} is no field of it")
    settings = {name: value for name, value in values.items() if name in known}
    settings["residuals"] = tuple(settings.get("residuals", ()))
    settings["step_seconds"] = tuple((float(a), float(b)) for a, b in settings.get("step_seconds", ()))
    return Calibration(**settings)
