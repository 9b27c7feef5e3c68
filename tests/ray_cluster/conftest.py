"""Gangs of fake programs, and the limits that suit them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_cluster.bundles import GroupBundles
from ray_cluster.gang import Gang, GangSpec, GangTimeouts
from ray_cluster.placement import create_placement

PROGRAM = "tests.ray_cluster.fake_program:FakeProgram"
TIMEOUTS = GangTimeouts(
    placement_s=20,
    start_s=60,
    start_heartbeat_s=30,
    heartbeat_every_s=0.2,
    heartbeat_s=2,
    drain_s=5,
    stop_s=5,
    kill_s=5,
)
SPEC_OPTIONS = ("run_ahead", "num_buffered", "threads_per_rank", "env")

MakeGang = Callable[..., Gang]


def in_time(_: int) -> float:
    """An item limit that no test reaches by working."""
    return 20.0


def bundles(num_ranks: int, *, gpus_per_rank: float = 1) -> GroupBundles:
    return GroupBundles(num_ranks, cpus_per_rank=0.1, gpus_per_rank=gpus_per_rank, leader_cpus=0.1)


def spec(folder: Path, *, program: str = PROGRAM, **options: Any) -> GangSpec:
    """A gang of fake programs; what is no option of the gang is one of the program."""
    of_gang = {name: options.pop(name) for name in SPEC_OPTIONS if name in options}
    return GangSpec(program, {"folder": folder, **options}, **of_gang)


def eventually(happened: Callable[[], Any], *, within_s: float = 20) -> Any:
    """Waits until `happened` answers something true, and returns that."""
    deadline = time.monotonic() + within_s
    while not (answer := happened()):
        assert time.monotonic() < deadline, f"did not happen within {within_s} s"
        time.sleep(0.02)
    return answer


@pytest.fixture
def make_gang(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MakeGang]:
    """Starts gangs that end with the test."""
    with contextlib.ExitStack() as stack:

        def make(num_ranks: int, **options: Any) -> Gang:
            name = request.node.name
            limits = {name: options.pop(name) for name in list(options) if name.endswith("_s")}
            placement = stack.enter_context(create_placement(bundles(num_ranks), name=name, timeout_s=20))
            timeouts = replace(TIMEOUTS, **limits)
            return stack.enter_context(Gang.start(placement, spec(tmp_path, **options), name=name, timeouts=timeouts))

        yield make
