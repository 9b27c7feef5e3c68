"""Plays a schedule of requests against the service, whatever it answers, and reports what came of them.

    python -m load_tests.open_loop --host http://127.0.0.1:8000 --rate 2 --duration 30

The schedule is drawn from --seed before anything is sent, or read from a trace; each request starts at its own time.
Exit code 1: the run is invalid, because this machine did not send the load that was intended.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from load_tests.arrivals import CLASSES, SHAPES, Arrival, Mix, Pattern, draw_schedule, read_trace, write_trace
from load_tests.client import Limits, Outcome, play, to_json
from load_tests.report import Tolerance, summarize, table

_DRAWN = ("rate", "duration", "shape", "burst", "seed", "stream", "size", "num_clip", "deadline_s")
"""Flags that only a schedule which is drawn needs."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        arrivals = schedule(options)
        limits = Limits(answer_s=options.answer_s, finish_s=options.finish_s, max_in_flight=options.max_in_flight)
        tolerance = Tolerance(p99_s=options.slip_p99_ms / 1e3, most_s=options.slip_most_ms / 1e3)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.write_trace is not None:
        write_trace(options.write_trace, arrivals)
    if options.dry_run:
        sys.stdout.write(f"{len(arrivals)} requests; nothing was sent\n")
        return 0
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        lines = _outcomes_file(options.outcomes, stack)

        def note(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if lines is not None:
                lines.write(to_json(outcome) + "\n")
                lines.flush()

        gc.freeze()  # so that collecting what was loaded does not delay a start
        asyncio.run(play(options.host, arrivals, limits=limits, on_outcome=note, uploads_once=options.upload_once))
    summary = summarize(outcomes, tolerance=tolerance)
    report = sys.stderr if options.outcomes == "-" else sys.stdout
    report.write(json.dumps(summary, indent=2) + "\n" if options.json else table(summary))
    return 1 if summary["invalid"] else 0


def schedule(options: argparse.Namespace) -> list[Arrival]:
    """Returns the arrivals that the flags ask for; raises ValueError or OSError."""
    if options.trace is not None:
        unused = [name for name in _DRAWN if getattr(options, name) != _parser().get_default(name)]
        if unused:
            raise ValueError(f"a trace says when what is asked for: --trace does not go with {', '.join(unused)}")
        return read_trace(options.trace)
    mix = Mix(
        classes=options.mix,
        sizes=options.size,
        num_clips=options.num_clip,
        deadline_s=options.deadline_s,
        readers=options.readers,
    )
    pattern = Pattern(shape=options.shape, rate=options.rate, duration_s=options.duration, burst=options.burst)
    return draw_schedule(pattern, mix, seed=f"{options.seed}/{options.stream}")


def _outcomes_file(path: str | None, stack: ExitStack) -> TextIO | None:
    if path is None:
        return None
    return sys.stdout if path == "-" else stack.enter_context(Path(path).open("w", encoding="utf-8"))


def weights(text: str) -> dict[str, float]:
    """Reads "interactive=0.3,bulk=0.7"; a name alone weighs 1."""
    pairs = [part.partition("=") for part in text.split(",")]
    return {name.strip(): float(weight or 1) for name, _, weight in pairs}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m load_tests.open_loop", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--host", required=True, metavar="URL", help="where the service is")
    add("--rate", type=float, default=1.0, help="requests per second, on the average (default 1)")
    add("--duration", type=float, default=30.0, metavar="S", help="seconds of arrivals (default 30)")
    add("--shape", choices=list(SHAPES), default="poisson", help="how they lie in time (default poisson)")
    add("--burst", type=int, default=10, metavar="N", help="with --shape burst: so many at once (default 10)")
    add("--seed", default="0")
    add("--stream", default="0", help="several clients with one seed: the number of this one")
    add("--mix", type=weights, default="standard", help=f"classes by weight, of {', '.join(CLASSES)}")
    add("--size", nargs="+", default=["64x64"], help="sizes, each as often as the others (default 64x64)")
    add("--num-clip", nargs="+", type=int, default=[1], help="lengths in clips of 1.92 s (default 1)")
    add("--deadline-s", type=float, help="deadline of every request (default: what its class gets)")
    add("--readers", type=weights, default="play", help='who reads live streams, for example "play=0.9,stop=0.1"')
    add("--upload-once", action="store_true", help="send files before the run, and their ids in requests of JSON")
    add("--trace", type=Path, metavar="FILE", help="play these arrivals (JSON lines) instead")
    add("--write-trace", type=Path, metavar="FILE", help="keep the schedule as a trace")
    add("--dry-run", action="store_true", help="draw the schedule and send nothing")
    add("--outcomes", metavar="FILE", help="one JSON line per request as it ends; -: to stdout, the report to stderr")
    add("--json", action="store_true", help="the report as JSON")
    add("--answer-s", type=float, default=Limits.answer_s, help="longest wait for an answer")
    add("--finish-s", type=float, default=Limits.finish_s, help="longest wait for the end of a video")
    add("--max-in-flight", type=int, default=Limits.max_in_flight, help="requests at once that this process takes on")
    add("--slip-p99-ms", type=float, default=Tolerance.p99_s * 1e3, help="tolerated lateness of 99 %% of the starts")
    add("--slip-most-ms", type=float, default=Tolerance.most_s * 1e3, help="tolerated lateness of any start")
    return parser


if __name__ == "__main__":
    sys.exit(main())
