"""Benchmark of gangs: what starting one takes, what it adds to a block, and what its ranks send to each other.

    python -m load_tests.bench_gang [--size 256*256] [--rounds 3]

The built-in tiny model on the CPU, logical GPUs, all in one run: figures of different runs do not compare.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_cluster.bundles import GroupBundles
from ray_cluster.gang import Gang, GangSpec, GangTimeouts
from ray_cluster.local import local_cluster
from ray_cluster.placement import create_placement
from serve_app.deployments.gang_source import gang_spec
from serve_app.planning.geometry import FRAMES_PER_BLOCK, Size, Timeline, exact_size, parse_size
from serve_app.planning.layout import ParallelLayout
from serve_app.rendering.frames import InProcessSource
from serve_app.schemas.config import AppConfig, GangLimits
from serve_app.task import MODEL_SAMPLE_RATE, RenderTask

CACHE_DIR = AppConfig().cache_dir
NUM_BLOCKS, WARM_UP = 16, 6
COUNTING = "load_tests.bench_gang:CountingProgram"
START_LAYOUT = "stages=4,vae=1"
TRAFFIC_LAYOUTS = (
    "stages=2",
    "stages=4,vae=1",
    "vae=2",
    "ulysses=2",
    "ulysses=4",
    "ulysses=4,weight_shards=4",
    "stages=2,ulysses=2,vae=1",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="256*256", help="of the blocks that are timed (default 256*256)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    task = a_task(exact_size(parse_size(options.size)), NUM_BLOCKS)
    with local_cluster(num_cpus=12, num_gpus=8, gpus_are_logical=True):
        print_starts(options.rounds)
        print_added_time(task, options.rounds)
        print_traffic(task)
    return 0


def print_starts(rounds: int) -> None:
    """Prints seconds from the placement to five ranks with their weights loaded."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        with gang(START_LAYOUT, threads=1):
            seconds.append(time.perf_counter() - started)
    listed = ", ".join(f"{each:.1f}" for each in seconds)
    say(f"gang start, {START_LAYOUT}, {os.cpu_count()} cores: {listed} s (goal: below 10 s)")


def print_added_time(task: RenderTask, rounds: int) -> None:
    """Prints a block's time in this process and through a gang of one rank, in turns."""
    threads = 1  # so that a core is left to Ray and the consumer, also where there are two
    torch_threads(threads)
    bare = InProcessSource(checkpoint="tiny", cache_dir=CACHE_DIR)
    times: dict[str, list[float]] = {"bare engine": [], "gang of one": []}
    with gang("single", threads=threads) as ranks:
        for _ in range(rounds):
            times["bare engine"] += block_seconds(bare.frames(task, is_cancelled=lambda: False))
            times["gang of one"] += block_seconds(ranks.run(task, item_limit_s=lambda _: 600.0))
    for name, seconds in times.items():
        say(f"block of {task.size}, {name}: median {statistics.median(seconds) * 1e3:.1f} ms of {len(seconds)}")
    ratio = statistics.median(times["gang of one"]) / statistics.median(times["bare engine"])
    say(f"a gang adds {ratio - 1:+.1%} to a block (goal: at most 2 %)")


def torch_threads(count: int) -> None:
    """Gives this process as many compute threads as a rank has."""
    import torch

    torch.set_num_threads(count)


def print_traffic(task: RenderTask) -> None:
    """Prints the bytes that the ranks of each layout send for a block, conditions and sink left out."""
    for layout in TRAFFIC_LAYOUTS:
        num_ranks = ParallelLayout.parse(layout).world_size
        short, long = (sent_bytes(layout, replace(task, timeline=Timeline(n * FRAMES_PER_BLOCK, 48))) for n in (6, 10))
        per_block = {purpose: (long[purpose] - short[purpose]) / 4 for purpose in long}
        parts = ", ".join(f"{purpose} {count / 2**10:.0f} KiB" for purpose, count in sorted(per_block.items()))
        say(
            f"{layout} ({num_ranks} ranks) at {task.size}: {sum(per_block.values()) / 2**10:.0f} KiB per block: {parts}"
        )


def sent_bytes(layout: str, task: RenderTask) -> Counter[str]:
    """Returns what all ranks send for one task, by purpose."""
    with tempfile.TemporaryDirectory() as folder:
        with gang(layout, threads=1, program=COUNTING, options={"folder": folder}) as ranks:
            for _ in ranks.run(task, item_limit_s=lambda _: 600.0):
                pass
        total: Counter[str] = Counter()
        for report in Path(folder).iterdir():
            total.update(json.loads(report.read_text()))
        return total


class CountingProgram:
    """The program of a rank, which leaves a file with the bytes that it sent when it closes."""

    def __init__(self, *, folder: str, **options: Any) -> None:  # noqa: ANN401
        from serve_app.engine.rank_program import AvatarProgram

        self._program = AvatarProgram(**options)
        self._folder = Path(folder)
        self.open_rendezvous = self._program.open_rendezvous
        self.start = self._program.start
        self.run = self._program.run

    def close(self) -> None:
        (self._folder / str(os.getpid())).write_text(json.dumps(self._program.sent_bytes()))
        self._program.close()


@contextmanager
def gang(
    layout: str, *, threads: int, program: str | None = None, options: Mapping[str, Any] | None = None
) -> Iterator[Gang]:
    parsed = ParallelLayout.parse(layout)
    spec: GangSpec = gang_spec(
        parsed, checkpoint="tiny", cache_dir=CACHE_DIR, limits=GangLimits(), threads_per_rank=threads
    )
    spec = replace(spec, program=program or spec.program, options={**spec.options, **(options or {})})
    bundles = GroupBundles(parsed.world_size)
    timeouts = GangTimeouts()
    with (
        create_placement(bundles, name=layout, timeout_s=timeouts.placement_s) as placement,
        Gang.start(placement, spec, name=layout, timeouts=timeouts) as ranks,
    ):
        yield ranks


def a_task(size: Size, num_blocks: int) -> RenderTask:
    random = np.random.default_rng(0)
    return RenderTask(
        prompt="A person talks calmly.",
        image=random.integers(0, 256, (size.height, size.width, 3), dtype=np.uint8),
        speech=random.uniform(-0.3, 0.3, num_blocks * MODEL_SAMPLE_RATE // 2).astype(np.float32),
        timeline=Timeline(num_blocks * FRAMES_PER_BLOCK, 48),
        sample_steps=4,
        seed=0,
        replace_reference=True,
    )


def block_seconds(blocks: Iterator[Any]) -> list[float]:
    """Returns the seconds from block to block once the windows are full."""
    arrivals = [time.perf_counter() for _ in blocks]
    return [later - earlier for earlier, later in zip(arrivals[WARM_UP:], arrivals[WARM_UP + 1 :], strict=False)]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
