"""A plan as a table for people and as JSON for programs."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from serve_app.plan_report.plan import DTYPE, Plan
from serve_app.planning.feasibility import Alternative, NeverFits, RankBudget
from serve_app.planning.hardware import GIB

_NAME_WIDTH, _CELL_WIDTH = 24, 12


def as_table(plan: Plan) -> str:
    """Returns what people read: memory by rank and part, the verdict, what would fit, time, host."""
    return "\n".join([*_head(plan), "", *_memory(plan), "", *_verdict(plan), "", *_time(plan), *_host(plan)])


def as_json(plan: Plan) -> dict[str, Any]:
    """Returns one object, also when the video never fits."""
    work, verdict = plan.question.work, plan.verdict
    nearest = verdict.nearest if isinstance(verdict, NeverFits) else ()
    return {
        "verdict": "never_fits" if isinstance(verdict, NeverFits) else "fits",
        "layout": str(plan.layout),
        "gpus": str(plan.question.gpus),
        "size": str(work.size),
        "infer_frames": work.infer_frames,
        "sample_steps": work.sample_steps,
        "num_frames": work.num_frames,
        "dtype": DTYPE,
        "ranks": [_rank_json(budget) for budget in verdict.ranks],
        "nearest": [_alternative_json(plan, one) for one in nearest],
        "does_not_fit": _refusal_json(verdict) if isinstance(verdict, NeverFits) else None,
        "remarks": list(verdict.remarks),
        "time": _time_json(plan),
        "host": vars(plan.host),
        "calibration": {name: getattr(plan.calibration, name) for name in ("kind", "gpu", "commit", "date")},
    }


def _head(plan: Plan) -> list[str]:
    work, gpus = plan.question.work, plan.question.gpus
    return [
        f"{work.size}, infer_frames {work.infer_frames}, {work.sample_steps} steps, {work.timeline.seconds:.1f} s of "
        f"video; layout {plan.layout} on {gpus} ({gpus.kind.total_gib:.2f} GiB each), {DTYPE}"
    ]


def _memory(plan: Plan) -> list[str]:
    groups = _alike(plan.verdict.ranks)
    names = list(dict.fromkeys(line.name for budget in plan.verdict.ranks for line in budget.lines))
    ordered = sorted(names, key=lambda name: (name == "reserve",))
    by_group = [{line.name: line.num_bytes for line in group[0].lines} for group in groups]
    rows = [("GiB at the worst moment", [_ranks(group) for group in groups])]
    rows += [(name, [_gib(lines.get(name)) for lines in by_group]) for name in ordered]
    rows += [
        ("needed", [_gib(group[0].needed_bytes) for group in groups]),
        ("card", [_gib(group[0].available_bytes) for group in groups]),
        ("fits", ["yes" if group[0].is_enough else "NO" for group in groups]),
    ]
    return [f"{name:<{_NAME_WIDTH}}" + "".join(f"{cell:>{_CELL_WIDTH}}" for cell in cells) for name, cells in rows]


def _alike(ranks: tuple[RankBudget, ...]) -> list[list[RankBudget]]:
    """Puts neighbours together that need the same."""
    return [list(group) for _, group in groupby(ranks, key=lambda budget: (budget.place.role, budget.lines))]


def _ranks(group: list[RankBudget]) -> str:
    first, last = group[0].place.rank, group[-1].place.rank
    named = f"rank {first}" if first == last else f"ranks {first}-{last}"
    return f"{named} vae" if group[0].place.role == "vae" else named


def _gib(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / GIB:.2f}"


def _verdict(plan: Plan) -> list[str]:
    verdict = plan.verdict
    remarks = [f"note: {remark}" for remark in verdict.remarks]
    if not isinstance(verdict, NeverFits):
        return ["fits", *remarks]
    offers = [f"  {_offer(plan, one)}" for one in verdict.nearest]
    return [str(verdict), *remarks, "would fit:" if offers else "nothing smaller fits either", *offers]


def _offer(plan: Plan, one: Alternative) -> str:
    asked = plan.question.work
    words = [
        f"--layout {one.layout}",
        *([f"--size {one.work.size}"] if one.work.size != asked.size else []),
        *([f"--infer-frames {one.work.infer_frames}"] if one.work.infer_frames != asked.infer_frames else []),
    ]
    return f"{' '.join(words)}  ({one.needed_bytes / GIB:.2f} GiB)"


def _time(plan: Plan) -> list[str]:
    time = plan.time
    rates = (
        f"{time.frames_per_second:.1f} frames per second, {time.gpu_seconds_per_video_second:.1f} GPU-seconds per "
        f"second of video, first frame after {time.first_frame_seconds:.1f} s"
    )
    phases = (
        f"load {time.load_seconds:.0f} s when cold, conditions {time.conditioning_seconds:.1f} s, call "
        f"{time.call_seconds:.2f} s, decode {time.decode_seconds:.2f} s per block, block every "
        f"{time.period_seconds:.2f} s, all {time.total_seconds:.0f} s"
    )
    return [f"time ({time.kind}): {rates}", f"  {phases}"]


def _host(plan: Plan) -> list[str]:
    host = plan.host
    return [
        f"host: {host.memory_bytes / GIB:.1f} GiB of memory, {host.pinned_bytes / GIB:.1f} GiB of it pinned; "
        f"disk {host.disk_bytes / 2**20:.0f} MiB"
    ]


def _rank_json(budget: RankBudget) -> dict[str, Any]:
    return {
        "rank": budget.place.rank,
        "place": str(budget.place),
        "fits": budget.is_enough,
        "needed_bytes": budget.needed_bytes,
        "available_bytes": budget.available_bytes,
        "parts": {line.name: line.num_bytes for line in budget.lines},
    }


def _alternative_json(plan: Plan, one: Alternative) -> dict[str, Any]:
    return {
        "change": one.change,
        "layout": str(one.layout),
        "size": str(one.work.size),
        "infer_frames": one.work.infer_frames,
        "needed_bytes": one.needed_bytes,
        "flags": _offer(plan, one).split("  ")[0],
    }


def _refusal_json(verdict: NeverFits) -> dict[str, Any]:
    return {
        "part": verdict.part,
        "rank": verdict.rank.rank,
        "needed_bytes": verdict.needed_bytes,
        "available_bytes": verdict.available_bytes,
        "message": str(verdict),
    }


def _time_json(plan: Plan) -> dict[str, Any]:
    return vars(plan.time)
