"""What the service adds to the engine: to a whole video, to its first block; and how fast it says no.

    python -m load_tests.bench_service [--rounds 5] [--num-clip 10] [--size 128x128]

Starts the service on this machine with one group of the built-in tiny model on the CPU, and beside it a bare group of
the same layout and threads. Both make the same videos in turns, never at once; ratios are taken pair by pair, so that
they hold where the machine's speed drifts. Then requests come faster than videos are made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import psutil

from load_tests.arrivals import Arrival
from load_tests.bodies import CLIP_S, portrait, prompt, voice
from load_tests.client import Limits, Outcome, play
from ray_cluster.replica_group import ReplicaGroup
from serve_app.deployments.dispatcher import STORE_NAME
from serve_app.deployments.gang_source import GangSource, gang_spec, gang_timeouts
from serve_app.deployments.render_group import group_bundles
from serve_app.jobs.job import Job
from serve_app.jobs.store import JobReader
from serve_app.local_service import local_service, wait_for_groups
from serve_app.planning.layout import ParallelLayout
from serve_app.rendering.pipeline import Progress, render
from serve_app.schemas.render import RenderSpec
from serve_app.schemas.service import PoolConfig, ServiceConfig
from serve_app.storage.videos import VideoFiles

ROOT = Path(__file__).parents[1]
POOL = PoolConfig(name="tiny", model="live-avatar-tiny", threads_per_rank=1)
HOST = "127.0.0.1"
START_S = 300.0
LIMITS = Limits(finish_s=600)
MOST_ADDED = 0.02
MOST_FIRST_S = MOST_REFUSAL_S = 0.050
_WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
_TITLES = {
    "proxy": "ray::ProxyActor",
    "API": "ray::ServeReplica:live-avatar:Ingress",
    "Dispatcher": "ray::ServeReplica:live-avatar:Dispatcher",
}
"""Ray names its processes."""
_SETTLE_S = 1.0
"""Between two videos: reports of the last one, and files that are removed, are none of the next one's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints figures as they come; exit code 1 when the service made other bytes, or the load was not the intended."""
    options = _parser().parse_args(arguments)
    say(_machine())
    with tempfile.TemporaryDirectory(prefix="live-avatar-") as folder:
        config = ServiceConfig(data_dir=Path(folder) / "data", pools=(POOL,), allow_anonymous=True)
        port = _free_port()
        url = f"http://{HOST}:{port}"
        with local_service(config, host=HOST, port=port):
            wait_for_groups(url, timeout_s=START_S, is_cancelled=lambda: False)
            is_right = all(_PARTS[part](url, config, options) for part in options.parts)
    say(_machine())
    return 0 if is_right else 1


def pairs_part(url: str, config: ServiceConfig, options: argparse.Namespace) -> bool:
    """Prints what the service adds; says whether both sides made the same bytes."""
    with _bare_source(config) as source, tempfile.TemporaryDirectory(prefix="live-avatar-") as folder:
        pairs = Pairs(url, source, config, Path(folder))
        print_whole(pairs, options)
        print_first(pairs, options)
    say(f"videos whose bytes differ from the bare group's: {pairs.num_different}")
    return not pairs.num_different


def overload_part(url: str, _: ServiceConfig, options: argparse.Namespace) -> bool:
    """Prints refusals of requests that bring their files, and of those that name files; says whether the runs count."""
    return all([print_refusals(url, options), print_refusals(url, options, "--upload-once")])


_PARTS: dict[str, Callable[[str, ServiceConfig, argparse.Namespace], bool]] = {
    "pairs": pairs_part,
    "overload": overload_part,
}


@dataclass(frozen=True)
class Times:
    """One video: seconds to its first block and to its end, and what all processes of this bench computed meanwhile."""

    first_s: float
    whole_s: float
    cpu_s: float


@dataclass(frozen=True)
class ServedTimes(Times):
    """`stored_s`: from created to completed, by the job store: waiting, the leader's render, telling of its end."""

    stored_s: float
    waited_s: float
    rendered_s: float
    first_rendered_s: float

    @property
    def outside_s(self) -> float:
        """From the request to its first block at the viewer, less what the leader worked on it."""
        return self.first_s - self.first_rendered_s

    @property
    def told_s(self) -> float:
        return self.stored_s - self.waited_s - self.rendered_s


@dataclass
class Pairs:
    """Makes the same video on the bare group and through the service."""

    url: str
    source: GangSource
    config: ServiceConfig
    root: Path
    num_made: int = 0
    num_different: int = 0
    bare_bytes: bytes = b""

    def make(self, arrival: Arrival, *, rounds: int) -> list[tuple[Times, ServedTimes]]:
        """Returns the times of `rounds` pairs, after one that is not counted."""
        pairs = []
        for _ in range(rounds + 1):
            time.sleep(_SETTLE_S)
            bare = self._bare(arrival)
            time.sleep(_SETTLE_S)
            pairs.append((bare, self._served(arrival)))
        return pairs[1:]

    def _bare(self, arrival: Arrival) -> Times:
        """Renders as a leader does: same path, same writer, same kind of place for the blocks."""
        self.num_made += 1
        name, videos = f"bare_{self.num_made}", VideoFiles(self.root / "bare")
        moments: list[float] = []

        def note(progress: Progress) -> None:
            if progress.frames_done:
                moments.append(time.perf_counter())

        spec = self._spec(arrival)
        cpu_s, started = _cpu_s(), time.perf_counter()
        render(
            spec,
            source=self.source,
            sink=videos.sink(name, attempt=1),
            config=self.config,
            on_progress=note,
            is_cancelled=lambda: False,
        )
        ended = time.perf_counter()
        self.bare_bytes = videos.location(name, 1).read_bytes()
        return Times(moments[0] - started, ended - started, _cpu_s() - cpu_s)

    def _spec(self, arrival: Arrival) -> RenderSpec:
        image, audio = self.root / "portrait.png", self.root / f"voice_{arrival.num_clip}.wav"
        image.write_bytes(portrait())
        audio.write_bytes(voice(arrival.num_clip * CLIP_S))
        return RenderSpec.from_request(
            image=str(image), audio=str(audio), prompt=prompt(), size=arrival.size, num_clip=arrival.num_clip
        )

    def _served(self, arrival: Arrival) -> ServedTimes:
        outcomes: list[Outcome] = []
        cpu_s = _cpu_s()
        asyncio.run(play(self.url, [arrival], limits=LIMITS, on_outcome=outcomes.append))
        cpu_s = _cpu_s() - cpu_s
        (outcome,) = outcomes
        if outcome.ending != "completed" or outcome.fault is not None or outcome.ended_s is None:
            raise RuntimeError(f"the service did not make the video: {outcome}")
        self._compare(str(outcome.video_id))
        slip_s, job = outcome.slip_s or 0.0, self._job(str(outcome.video_id))
        assert job.started_at is not None
        assert job.finished_at is not None
        return ServedTimes(
            first_s=(outcome.first_block_s or 0.0) - slip_s,
            whole_s=outcome.ended_s - slip_s,
            cpu_s=cpu_s,
            stored_s=job.finished_at - job.created_at,
            waited_s=job.started_at - job.created_at,
            rendered_s=job.result["inference_time_s"],
            first_rendered_s=job.result["first_block_s"],
        )

    def _compare(self, video_id: str) -> None:
        """Counts videos that differ from the bare group's: then the two did not do the same."""
        content = httpx2.get(f"{self.url}/v1/videos/{video_id}/content", timeout=LIMITS.quiet_s).content
        self.num_different += content != self.bare_bytes

    def _job(self, video_id: str) -> Job:
        reader = JobReader.open(self.config.data_dir / STORE_NAME)
        try:
            return reader.get(video_id)
        finally:
            reader.close()


def print_whole(pairs: Pairs, options: argparse.Namespace) -> None:
    """Prints what the service adds to a whole video that nobody watches: a viewer's work is the viewer's."""
    arrival = Arrival(0.0, "standard", options.size, options.num_clip, reader="none")
    made = pairs.make(arrival, rounds=options.rounds)
    served = [its for _, its in made]
    say(f"videos of {options.num_clip * CLIP_S:.1f} s at {options.size}, {options.rounds} pairs:")
    say(f"  bare group            {_spread([own.whole_s for own, _ in made])} s")
    say(f"  created to completed  {_spread([its.stored_s for its in served])} s, of which")
    say(f"    until it is started {_spread([its.waited_s for its in served], 1e3, '.0f')} ms")
    say(f"    the leader's render {_spread([its.rendered_s for its in served])} s")
    say(f"    telling of its end  {_spread([its.told_s for its in served], 1e3, '.0f')} ms")
    say(f"  sent to completed     {_spread([its.whole_s for its in served])} s")
    stored = _percent([its.stored_s / own.whole_s for own, its in made])
    say(f"the service adds, created to completed: {stored} (goal: at most {MOST_ADDED:+.0%})")
    say(f"  sent to completed: {_percent([its.whole_s / own.whole_s for own, its in made])}")
    say(f"  the leader's render alone: {_percent([its.rendered_s / own.whole_s for own, its in made])}")
    say(f"  processor time of all processes: {_percent([its.cpu_s / own.cpu_s for own, its in made])}")


def print_first(pairs: Pairs, options: argparse.Namespace) -> None:
    """Prints what the service adds until a viewer has the first block."""
    made = pairs.make(Arrival(0.0, "standard", options.size, 1), rounds=options.first_rounds)
    added = [its.first_s - own.first_s for own, its in made]
    say(f"first block at {options.size}, {options.first_rounds} pairs:")
    say(f"  bare group, written   {_spread([own.first_s for own, _ in made], 1e3, '.0f')} ms")
    say(f"  sent to received      {_spread([its.first_s for _, its in made], 1e3, '.0f')} ms")
    say(f"the service adds: {_spread(added, 1e3, '.0f')} ms (goal: at most {MOST_FIRST_S * 1e3:.0f} ms)")
    say(f"  outside the leader's render: {_spread([its.outside_s for _, its in made], 1e3, '.0f')} ms")


def print_refusals(url: str, options: argparse.Namespace, *flags: str) -> bool:
    """Prints how fast refusals come when more is asked for than can be made; says whether the run counts."""
    command = [sys.executable, "-m", "load_tests.open_loop", "--host", url, "--json", "--mix", "interactive"]
    load = ["--rate", str(options.rate), "--duration", str(options.duration), "--size", options.size]
    before = _cpu_by_part()
    ended = subprocess.run(  # noqa: S603
        [*command, *load, "--readers", "none", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMITS.finish_s,
    )
    if not ended.stdout:
        raise RuntimeError(f"the load client failed: {ended.stderr}")
    summary = json.loads(ended.stdout)
    refused = sum(summary["refused"].values())
    files_come = "before" if flags else "with each"
    say(
        f"overload, {options.rate:g} requests/s for {options.duration:g} s, files {files_come}: "
        f"{refused} of {summary['offered']} refused"
    )
    for name in ("post, refused", "post, accepted", "slip"):
        if figures := summary["seconds"].get(name):
            goal = f" (goal: p99 below {MOST_REFUSAL_S * 1e3:.0f} ms)" if name == "post, refused" else ""
            parts = ", ".join(f"{each} {figures[each] * 1e3:.1f}" for each in ("p50", "p90", "p99", "longest"))
            say(f"  {name:<15} {parts} ms of {figures['count']}{goal}")
    spent = {part: (cpu_s - before[part]) / summary["offered"] for part, cpu_s in _cpu_by_part().items()}
    say(f"  processor time per request: {', '.join(f'{part} {cpu_s * 1e3:.1f}' for part, cpu_s in spent.items())} ms")
    for name in ("faults", "ended"):
        if summary[name]:
            say(f"  {name}: {', '.join(f'{count} {what}' for what, count in summary[name].items())}")
    if promises := summary.get("promises"):
        say(f"  promises kept: {promises['kept']} of {promises['decided']} (goal: at least 99 %)")
    for reason in summary["invalid"]:
        say(f"  INVALID: {reason}")
    return not summary["invalid"]


@contextmanager
def _bare_source(config: ServiceConfig) -> Iterator[GangSource]:
    """A group as `deployments.render_group` builds it, led by this process."""
    layout = ParallelLayout.parse(POOL.layout)
    spec = gang_spec(
        layout,
        checkpoint=POOL.checkpoint,
        cache_dir=config.cache_dir,
        limits=config.gang,
        threads_per_rank=POOL.threads_per_rank or 1,
    )
    spec = replace(spec, env={**spec.env, **_WITHOUT_GPU})
    group = ReplicaGroup("bare", spec, group_bundles(POOL), timeouts=gang_timeouts(config.gang))
    group.start()
    try:
        group.wait_ready(timeout_s=START_S)
        yield GangSource(group, limits=config.gang)
    finally:
        group.stop()


def _machine() -> str:
    """Says how busy the machine is: figures that were taken beside other work tell of that, too."""
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, load average of the last minute {load:.1f}"


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def _cpu_s(title: str = "") -> float:
    """Returns the processor time of this process and all that it started, or of those whose title begins so."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(title):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def _cpu_by_part() -> dict[str, float]:
    """Returns the processor time of what a request goes through."""
    return {part: _cpu_s(title) for part, title in _TITLES.items()}


def _spread(values: Sequence[float], factor: float = 1.0, form: str = ".2f") -> str:
    low, middle, high = (each(values) * factor for each in _SPREAD)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def _percent(ratios: Sequence[float]) -> str:
    low, middle, high = (each(ratios) - 1 for each in _SPREAD)
    return f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"


_SPREAD: tuple[Callable[[Sequence[float]], float], ...] = (min, statistics.median, max)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m load_tests.bench_service", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--parts", nargs="+", choices=list(_PARTS), default=list(_PARTS), help="what is measured (default: all)")
    add("--size", default="128x128")
    add("--num-clip", type=int, default=10, help="length of the whole videos in clips of 1.92 s (default 10)")
    add("--rounds", type=int, default=5, help="pairs of whole videos (default 5)")
    add("--first-rounds", type=int, default=15, help="pairs of short videos, for their first blocks (default 15)")
    add("--rate", type=float, default=20, help="requests per second in the overload (default 20)")
    add("--duration", type=float, default=30, help="seconds of overload (default 30)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
