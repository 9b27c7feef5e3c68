"""Verdicts beside an oracle: no video is admitted that would run out of memory, few are refused that would not."""

from __future__ import annotations

from serve_app.planning.calibration import load_calibration
from serve_app.planning.geometry import Size
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.workload import Workload
from tests.planning.caching_allocator import CachingAllocator
from tests.planning.oracle import card_needed
from tests.planning.trials import draw_videos, score, trials_of

NUM_CASES = 300
NUM_VIDEOS = 6
SEED = 7


def test_300_verdicts_on_cards_near_the_need() -> None:
    calibration = load_calibration()
    trials = [
        trial
        for number, (work, layout) in enumerate(draw_videos(NUM_VIDEOS, seed=SEED))
        for trial in trials_of(
            work, layout, num_cards=-(-NUM_CASES // NUM_VIDEOS), calibration=calibration, seed=number
        )
    ]
    found = score(trials)
    assert found.num_trials >= NUM_CASES
    assert list(map(str, found.false_admits)) == []
    assert found.needless_rate < 0.1
    assert min(found.num_admitted, found.num_roomy) > NUM_CASES / 4


def test_fixed_segments_need_more_than_is_planned_for() -> None:
    """Why ranks must run with expandable segments, which verdicts take for granted."""
    work, layout = Workload(Size(384, 256)), ParallelLayout(offload="layers")
    expandable = card_needed(work, layout, load_calibration())
    fixed = card_needed(work, layout, load_calibration(), allocator=CachingAllocator)
    assert fixed > 1.08 * expandable
