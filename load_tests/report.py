"""What a run measured: counts, rates and percentiles, as JSON and as a table; what nobody measured is left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from load_tests.client import Outcome

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Tolerance:
    """How much later than intended requests may start before a run says nothing."""

    p99_s: float = 0.050
    most_s: float = 0.250


@dataclass(frozen=True)
class Figures:
    """Some times, in seconds, by nearest rank: each figure is one that was measured."""

    count: int
    p50: float
    p90: float
    p99: float
    longest: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Figures:
        ranked = sorted(seconds)
        p50, p90, p99 = (percentile(ranked, percent) for percent in PERCENTILES)
        return cls(len(ranked), p50, p90, p99, ranked[-1])


def percentile(ranked: Sequence[float], percent: float) -> float:
    """Returns the smallest of the ranked values that at least `percent` % of them do not exceed."""
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def summarize(outcomes: Sequence[Outcome], *, tolerance: Tolerance) -> dict[str, Any]:
    """Returns all that can be said of a run; `invalid` lists the reasons for which it says nothing of the service."""
    accepted = [one for one in outcomes if one.is_accepted]
    return {
        "invalid": why_invalid(outcomes, tolerance),
        "offered": len(outcomes),
        "accepted": len(accepted),
        "refused": _counted(one.refusal for one in outcomes),
        "faults": _counted(one.fault for one in outcomes),
        "ended": _counted(one.ending for one in accepted),
        "failures": _counted(one.failure for one in accepted),
        **_rates(outcomes),
        "seconds": _times(outcomes),
        "playback": _playback(accepted),
    }


def why_invalid(outcomes: Sequence[Outcome], tolerance: Tolerance) -> list[str]:
    """Returns why the load was not the one that was intended; nothing when it was."""
    slips = [one.slip_s for one in outcomes if one.slip_s is not None]
    reasons = []
    num_unsent = len(outcomes) - len(slips)
    if num_unsent or not outcomes:
        reasons.append(f"{num_unsent} of {len(outcomes)} requests were not sent")
    if slips:
        slip = Figures.of(slips)
        for name, found, limit in (("p99", slip.p99, tolerance.p99_s), ("longest", slip.longest, tolerance.most_s)):
            if found > limit:
                reasons.append(f"requests started late: {name} {found * 1e3:.0f} ms, tolerated {limit * 1e3:.0f} ms")
    return reasons


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value is not None).most_common())


def _rates(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns what counts in the end: from the first intended start to the last thing that happened."""
    ends = [one.arrival.at_s + max(one.answered_s or 0, one.ended_s or 0) for one in outcomes]
    kept = [one.is_promise_kept for one in outcomes if one.is_promise_kept is not None]
    good = [one for one in outcomes if one.is_good]
    rates: dict[str, Any] = {"good": len(good)}
    if outcomes and (lasted_s := max(ends) - min(one.arrival.at_s for one in outcomes)) > 0:
        rates["lasted_s"] = lasted_s
        rates["good_per_s"] = len(good) / lasted_s
        rates["good_of_offered"] = len(good) / len(outcomes)
    if kept:
        rates["promises"] = {"decided": len(kept), "kept": sum(kept), "rate": sum(kept) / len(kept)}
    return rates


_TIMES: Mapping[str, Callable[[Outcome], float | None]] = {
    "slip": lambda one: one.slip_s,
    "post, accepted": lambda one: one.answered_s if one.is_accepted else None,
    "post, refused": lambda one: one.answered_s if one.refusal else None,
    "retry-after": lambda one: one.retry_after_s,
    "event `started`": lambda one: one.started_s,
    "first byte": lambda one: one.first_byte_s,
    "first block": lambda one: one.first_block_s,
    "completed": lambda one: one.ended_s if one.ending == "completed" else None,
}


def _times(outcomes: Iterable[Outcome]) -> dict[str, dict[str, float]]:
    measured = {name: [s for one in outcomes if (s := of(one)) is not None] for name, of in _TIMES.items()}
    return {name: asdict(Figures.of(seconds)) for name, seconds in measured.items() if seconds}


def _playback(accepted: Iterable[Outcome]) -> dict[str, Any]:
    """Returns how live streams played that were read to their end."""
    whole = [one for one in accepted if one.is_cut is not None]
    played = [one.playback for one in whole if one.playback is not None]
    if not played:
        return {}
    return {
        "played": len(played),
        "cut": sum(bool(one.is_cut) for one in whole),
        "media_s": sum(one.media_s for one in played),
        "stalled_videos": sum(one.num_stalls > 0 for one in played),
        "stalls": sum(one.num_stalls for one in played),
        "stalled_s": sum(one.stalled_s for one in played),
    }


def table(summary: Mapping[str, Any]) -> str:
    """Returns a summary for people."""
    lines = [f"INVALID: {reason}" for reason in summary["invalid"]]
    lines += [f"{'offered':<16}{summary['offered']}", f"{'accepted':<16}{summary['accepted']}"]
    for name in ("refused", "faults", "ended", "failures"):
        if summary[name]:
            lines.append(f"{name:<16}" + ", ".join(f"{count} {what}" for what, count in summary[name].items()))
    if "good_per_s" in summary:
        lines.append(
            f"{'goodput':<16}{summary['good_per_s']:.2f} videos/s ({summary['good']} in {summary['lasted_s']:.1f} s), "
            f"{summary['good_of_offered']:.0%} of what was offered"
        )
    if promises := summary.get("promises"):
        lines.append(f"{'promises kept':<16}{promises['rate']:.1%} ({promises['kept']} of {promises['decided']})")
    return "\n".join([*lines, *_time_lines(summary["seconds"]), *_playback_lines(summary["playback"])]) + "\n"


def _time_lines(times: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not times:
        return []
    head = f"{'seconds':<16}" + "".join(f"{name:>10}" for name in ("count", "p50", "p90", "p99", "longest"))
    rows = [
        f"{name:<16}{figures['count']:>10}"
        + "".join(f"{figures[each]:>10.3f}" for each in ("p50", "p90", "p99", "longest"))
        for name, figures in times.items()
    ]
    return [head, *rows]


def _playback_lines(playback: Mapping[str, Any]) -> list[str]:
    if not playback:
        return []
    return [
        f"{'playback':<16}{playback['played']} live streams of {playback['media_s']:.1f} s, "
        f"{playback['cut']} cut short; {playback['stalls']} stalls in {playback['stalled_videos']} of them, "
        f"{playback['stalled_s']:.2f} s"
    ]
