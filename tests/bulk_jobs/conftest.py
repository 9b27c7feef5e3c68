"""Bulk jobs as processes of their own, on a cluster that outlives them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.bulk_jobs.manifests import write_inputs

ROOT = Path(__file__).parents[2]
PROGRAM = "load_tests.cost_program:CostProgram"
END_S = 240.0
SETTINGS: dict[str, Any] = {
    **dict.fromkeys(["manifest", "out", "audio_dir", "image", "prompt", "name", "url", "checkpoint", "gpus", "layout"]),
    **dict.fromkeys(["cpus_per_rank", "leader_cpus", "row_timeout_s", "max_attempts"]),
    "watch": False,
    "archive": False,
    "pool": "own",
    "groups": 4,
    "address": None,
    "defaults": {},
    "aborts_on_invalid": False,
}
LIMITS = {"retry_after_s": 0.2, "progress_every_s": 0.3, "heartbeat_every_s": 0.5, "stale_after_s": 4.0}
POOL = {"cpus_per_rank": 0.1, "leader_cpus": 0.1, "cpu_memory_gib": 1.0}


@dataclass
class BulkRay:
    """A cluster of the tests, on which drivers come and go."""

    process: subprocess.Popen[str]
    address: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def tell(self) -> dict[str, Any]:
        """Returns what it tells next."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("told: "):
                return dict(json.loads(line.removeprefix("told: ")))
        raise AssertionError(f"the cluster ended with {self.process.wait()}")

    def look(self) -> dict[str, Any]:
        """Returns what is on it: `left`, `ranks`, `plasma_bytes`."""
        assert self.process.stdin is not None
        self.process.stdin.write("look\n")
        self.process.stdin.flush()
        return self.tell()

    def until_empty(self, *, within_s: float = 60.0) -> None:
        """Waits until nothing of a job that ended is left."""
        deadline = time.monotonic() + within_s
        while left := self.look()["left"]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


@pytest.fixture(scope="session")
def bulk_ray() -> Iterator[BulkRay]:
    """A cluster in a process of its own: this one may be connected to another."""
    command = [sys.executable, "-m", "tests.bulk_jobs.cluster_process"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        cluster = BulkRay(process)
        told = cluster.tell()
        cluster.address, cluster.environment = told["address"], told["environment"]
        yield cluster


@dataclass
class Job:
    """One driver process, and what it told."""

    process: subprocess.Popen[str]
    log: Path
    told: list[dict[str, Any]] = field(default_factory=list)

    def until(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Reads what the driver tells, up to an event for which this holds."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.told.append(json.loads(line))
                if is_so(self.told[-1]):
                    return self.told[-1]
        said = self.log.read_text()[-4000:]
        raise AssertionError(f"the driver ended with {self.process.wait()} after {self.told[-1:]}: {said}")

    def has_done(self, count: int) -> dict[str, Any]:
        return self.until(lambda told: "progress" in told and told["progress"]["rows"]["done"] >= count)

    def end(self) -> tuple[int, dict[str, Any]]:
        """Waits for the end; returns exit code and summary."""
        summary = self.until(lambda told: "summary" in told)["summary"]
        self.until(lambda told: "peak_bytes" in told)
        return self.process.wait(END_S), summary


@contextmanager
def job(folder: Path, cluster: BulkRay | None, manifest: Path | str, *, out: str, **given: Any) -> Iterator[Job]:
    """Starts a driver, without a cluster in a Ray of its own; whatever happens, it is gone afterwards."""
    limits, pool, gang = (given.pop(name, {}) for name in ("limits", "pool_changes", "gang"))
    program, env = given.pop("program", PROGRAM), given.pop("env", {})
    address, joins = (cluster.address, cluster.environment) if cluster else (None, {})
    settings = {**SETTINGS, "manifest": str(manifest), "out": out, "address": address, **given}
    config = folder / f"job_{time.monotonic_ns()}.json"
    changes = {"limits": {**LIMITS, **limits}, "pool": {**POOL, **pool}, "gang": gang}
    config.write_text(json.dumps({"settings": settings, "program": program, "changes": changes}))
    environ = {**os.environ, **joins, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    log = (folder / "driver.log").open("a")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bulk_jobs.driver", str(config)],
        cwd=ROOT,  # where the ranks find the program
        env=environ,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Job(process, folder / "driver.log")
        finally:
            process.kill()
            log.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


def eventually(is_so: Callable[[], bool], *, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)


def ledger(out: Path) -> list[dict[str, Any]]:
    """Returns the steps of all runs, in order."""
    lines = [line for path in sorted((out / "ledger").iterdir()) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
