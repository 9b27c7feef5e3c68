"""A plan: the verdict on a question, with time and host budgets beside it."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.plan_report.question import PlanQuestion, check_count, preset_layout
from serve_app.planning.calibration import Calibration
from serve_app.planning.cost import Prediction, predict
from serve_app.planning.feasibility import Feasible, NeverFits, fits, layouts_for, rank_budgets
from serve_app.planning.host import HostBudget, host_budget
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.network import PUBLISHED, DType

DTYPE: DType = "bfloat16"
"""Cards compute in this; the CPU's float32 is not planned for."""


@dataclass(frozen=True)
class Plan:
    """Everything that a report tells."""

    question: PlanQuestion
    layout: ParallelLayout
    verdict: Feasible | NeverFits
    time: Prediction
    host: HostBudget
    calibration: Calibration


def make_plan(question: PlanQuestion, *, calibration: Calibration) -> Plan:
    """Returns the plan; without a layout the machine's preset is judged, or the fastest layout that fits.

    Raises InvalidRequestError when the layout does not suit model or cards.
    """
    work, gpus = question.work, question.gpus
    layout = question.layout or preset_layout(gpus) or _fastest(question, calibration)
    check_count(layout, gpus)
    return Plan(
        question=question,
        layout=layout,
        verdict=fits(work, layout, gpus, calibration=calibration, dtype=DTYPE),
        time=predict(work, layout, gpus.kind, dtype=DTYPE, calibration=calibration),
        host=host_budget(work, layout, calibration=calibration, input_bytes=question.input_bytes, dtype=DTYPE),
        calibration=calibration,
    )


def _fastest(question: PlanQuestion, calibration: Calibration) -> ParallelLayout:
    """Returns the fastest layout that fits; the single one, which `nearest` then leads away from, where none does."""
    work, gpus = question.work, question.gpus
    feasible = [
        layout
        for layout in layouts_for(work, gpus.count, num_heads=PUBLISHED.dit.num_heads)
        if all(rank.is_enough for rank in rank_budgets(work, layout, gpus, calibration=calibration, dtype=DTYPE))
    ]

    def seconds(layout: ParallelLayout) -> tuple[float, int]:
        predicted = predict(work, layout, gpus.kind, dtype=DTYPE, calibration=calibration)
        return predicted.period_seconds, layout.world_size

    return min(feasible, key=seconds, default=ParallelLayout())
