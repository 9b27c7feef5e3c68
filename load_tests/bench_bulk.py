"""What a bulk job makes of its groups: makespan beside the longest-first bound, utilisation; and the way of scripts.

    python -m load_tests.bench_bulk [--rows 60] [--groups 4] [--real-rows 5]

First a manifest for a program that takes the time that the cost table says, on several groups without a GPU: what is
measured is the job's own. Then a few videos of the built-in tiny model, by one bulk job with one group, and by a
process for each video, which loads the model each time, as scripts around the model do: the same rows, in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.bodies import portrait, prompt, voice
from serve_app.bulk.command import run_bulk
from serve_app.bulk.plan import makespan
from serve_app.bulk.row import Document
from serve_app.commands.bulk import add_run_flags, settings_of
from serve_app.rendering.frames import PROGRAM as PROGRAM_OF_RANKS

NO_CHANGES: Document = {}
PROGRAM = "load_tests.cost_program:CostProgram"
LIGHT = {"pool": {"cpus_per_rank": 0.1, "leader_cpus": 0.1}}
"""Groups that only wait need no core each."""
MOST_MAKESPAN, LEAST_UTILISATION = 1.08, 0.95
SECONDS = (1.0, 8.0)
"""Voices are between these, drawn once from a fixed seed."""


@dataclass(frozen=True)
class Made:
    """A row that was made: by which group, from when to when; in the clock of the driver, which heard of it."""

    group: str
    began_at: float
    ended_at: float


class Quiet:
    """A listener that says nothing."""

    def planned(self, plan: Document) -> None: ...
    def progress(self, state: Document) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints figures as they come; exit code 1 when a row failed, or the two ways made other bytes."""
    options = _parser().parse_args(arguments)
    say(f"{os.cpu_count()} cores, load average of the last minute {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="live-avatar-") as folder:
        is_right = all([schedule_part(Path(folder), options), scripts_part(Path(folder), options)])
    return 0 if is_right else 1


def schedule_part(folder: Path, options: argparse.Namespace) -> bool:
    """Prints makespan and utilisation of a job by the cost table."""
    chance = random.Random(7)  # noqa: S311
    seconds = [chance.uniform(*SECONDS) for _ in range(options.rows)]
    manifest = write_manifest(folder / "table.jsonl", seconds, size="128*128")
    out = folder / "table"
    code, _ = bulk(manifest, out, f"--groups={options.groups}", program=PROGRAM, changes=LIGHT)
    steps = [json.loads(line) for path in (out / "ledger").iterdir() for line in path.read_text().splitlines()]
    ordered = [step["at"] for step in steps if step["event"] == "ordered"]
    rows = [Made(step["group"], step["at"] - step["busy_s"], step["at"]) for step in steps if step["event"] == "done"]
    bound = makespan(sorted((row.ended_at - row.began_at for row in rows), reverse=True), options.groups)
    took = max(row.ended_at for row in rows) - min(row.began_at for row in rows)
    say(f"{len(rows)} rows by the cost table on {options.groups} groups:")
    say(f"  from the first order to the first row at work {min(row.began_at for row in rows) - min(ordered):.1f} s")
    say(f"  from there to the last result {took:.1f} s, longest-first bound of the same rows {bound:.1f} s")
    say(f"  makespan: {took / bound:.3f} of the bound (goal: at most {MOST_MAKESPAN})")
    share = utilisation(rows, until=max(ordered))
    say(f"  groups at work until the last order: {share:.1%} (goal: at least {LEAST_UTILISATION:.0%})")
    return code == 0


def utilisation(rows: Sequence[Made], *, until: float) -> float:
    """Returns the part of the groups' time at work, from when each has its first row until that moment."""
    groups = {row.group for row in rows}
    since = max(min(row.began_at for row in rows if row.group == group) for group in groups)
    worked = sum(max(0.0, min(row.ended_at, until) - max(row.began_at, since)) for row in rows)
    return worked / ((until - since) * len(groups))


def scripts_part(folder: Path, options: argparse.Namespace) -> bool:
    """Prints how long the same videos take by one job, and by a process for each."""
    manifest = write_manifest(folder / "real.jsonl", [2.0] * options.real_rows, size="64*64")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    render(rows[0], folder / "warm-up.mp4")  # makes the tiny model, once
    out = folder / "real"
    started = time.perf_counter()
    code, _ = bulk(manifest, out, "--groups=1")
    by_job = time.perf_counter() - started
    started = time.perf_counter()
    for row in rows:
        render(row, folder / f"{row['custom_id']}.mp4")
    by_scripts = time.perf_counter() - started
    num_different = sum(
        (folder / f"{row['custom_id']}.mp4").read_bytes() != (out / row["custom_id"] / "video.mp4").read_bytes()
        for row in rows
    )
    say(f"{len(rows)} videos of 2 s at 64x64 by the tiny model, on one group:")
    say(f"  one bulk job {by_job:.1f} s, with the start of its Ray; a process for each video {by_scripts:.1f} s")
    say(f"  the job takes {by_job / by_scripts:.2f} of the scripts' time; videos that differ: {num_different}")
    return code == 0 and not num_different


def bulk(
    manifest: Path, out: Path, *flags: str, program: str = PROGRAM_OF_RANKS, changes: Document = NO_CHANGES
) -> tuple[int, Document]:
    """Runs a job as `live-avatar bulk run` does, in this process."""
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    options = parser.parse_args([str(manifest), f"--out={out}", "--gpus=none", *flags])
    code, summary = run_bulk(
        settings_of(options), listener=Quiet(), is_stopped=lambda: False, program=program, changes=changes
    )
    return int(code), summary


def render(row: dict[str, Any], out: Path) -> None:
    """Makes one video as scripts do: a process that loads the model, and ends."""
    flags = [f"--{name}={row[name]}" for name in ("image", "audio", "prompt", "size", "seed")]
    command = [sys.executable, "-m", "serve_app.cli", "render", *flags, f"--out={out}"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)  # noqa: S603


def write_manifest(path: Path, seconds: Sequence[float], *, size: str) -> Path:
    """Writes rows with voices of these lengths beside it."""
    inputs = path.with_suffix(".inputs")
    inputs.mkdir()
    (inputs / "portrait.png").write_bytes(portrait())
    rows = []
    for number, length in enumerate(seconds):
        (inputs / f"{number}.wav").write_bytes(voice(length))
        where = {"image": str(inputs / "portrait.png"), "audio": str(inputs / f"{number}.wav")}
        rows.append({"custom_id": f"row-{number}", **where, "prompt": prompt(), "size": size, "seed": number})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m load_tests.bench_bulk", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, default=60, help="rows by the cost table (default 60)")
    parser.add_argument("--groups", type=int, default=4, help="groups for them (default 4)")
    parser.add_argument("--real-rows", type=int, default=5, help="videos of the tiny model (default 5)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
