"""Ten thousand verdicts of `live-avatar plan` beside an oracle.

python -m load_tests.bench_budgets [--cases 10000] [--workers N] [--seed 0]

The oracle replays what the real networks allocate at full size through CUDA's caching allocator (tests/planning).
Exit code 1 when a video was admitted that would have run out of memory, or one in ten was refused needlessly.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from serve_app.planning.calibration import load_calibration
from tests.planning.trials import Trial, draw_videos, score, trials_of

CARDS_PER_VIDEO = 20
MOST_NEEDLESS = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line of progress every so often, and the score."""
    options = _parser().parse_args(arguments)
    started, trials = time.perf_counter(), list[Trial]()
    jobs = range(-(-options.cases // CARDS_PER_VIDEO))
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for done, some in enumerate(pool.map(_trials, jobs, [options.seed] * len(jobs)), 1):
            trials += some
            if done % 50 == 0:
                sys.stderr.write(f"{time.perf_counter() - started:.0f} s: {score(trials)}\n")
    found = score(trials[: options.cases])
    sys.stdout.write(f"{found}\n")
    for trial in found.false_admits:
        sys.stdout.write(f"false admit: {trial}\n")
    return 0 if not found.false_admits and found.needless_rate < MOST_NEEDLESS else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m load_tests.bench_budgets", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _trials(number: int, seed: int) -> list[Trial]:
    """Returns the verdicts on one video; every video is a pure function of seed and number."""
    calibration = load_calibration()
    *_, (work, layout) = draw_videos(number + 1, seed=seed)
    return trials_of(work, layout, num_cards=CARDS_PER_VIDEO, calibration=calibration, seed=seed * 1_000_003 + number)


if __name__ == "__main__":
    sys.exit(main())
