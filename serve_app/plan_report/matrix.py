"""The feasibility table in the form that users know: sizes by hardware classes, as Markdown."""

from __future__ import annotations

from serve_app.plan_report.plan import DTYPE
from serve_app.plan_report.question import effective_of
from serve_app.planning.calibration import Calibration
from serve_app.planning.cost import predict
from serve_app.planning.feasibility import Feasible, fits
from serve_app.planning.hardware import GIB, parse_gpus
from serve_app.planning.layout import HARDWARE_PRESETS, HardwarePreset
from serve_app.planning.workload import Workload

SIZES = ("384*256", "576*320", "640*384", "688*368", "704*384", "720*400", "1280*720")
"""What users write; the video of a portrait of that shape is a little smaller."""
_MARKS = {"analytic": "a", "measured": "m"}


def as_matrix(calibration: Calibration) -> str:
    """Returns a row per size and a column per hardware preset: needed GiB of the fullest card, frames per second."""
    presets = list(HARDWARE_PRESETS.values())
    head = ["size", "video", *(f"{preset.name}<br>`{preset.layout}`" for preset in presets)]
    rows = [head, ["---"] * len(head), *(_row(size, presets, calibration) for size in SIZES)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _row(size: str, presets: list[HardwarePreset], calibration: Calibration) -> list[str]:
    work = Workload(effective_of(size))
    return [size, str(work.size), *(_cell(work, preset, calibration) for preset in presets)]


def _cell(work: Workload, preset: HardwarePreset, calibration: Calibration) -> str:
    """Says yes or no with the need of the fullest card, reserve included, and where the constants come from."""
    gpus, mark = parse_gpus(preset.name), _MARKS[calibration.kind]
    verdict = fits(work, preset.layout, gpus, calibration=calibration, dtype=DTYPE)
    needed = max(rank.needed_bytes for rank in verdict.ranks) / GIB
    if not isinstance(verdict, Feasible):
        return f"no, {needed:.1f} ({mark})"
    time = predict(work, preset.layout, gpus.kind, dtype=DTYPE, calibration=calibration)
    return f"**yes**, {needed:.1f}, {time.frames_per_second:.1f} FPS ({mark})"
