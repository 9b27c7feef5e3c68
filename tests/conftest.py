"""Shared fixtures; after the run, the largest error of every kind of reference data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from ray_cluster.local import MIB, LocalCluster, local_cluster
from serve_app.model.random_checkpoint import write_checkpoint
from tests.small_model import SMALL


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint folder of the smallest model."""
    root = tmp_path_factory.mktemp("small") / "ckpt"
    write_checkpoint(root, SMALL)
    return root


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """One Ray for all tests of a run, with eight logical GPUs."""
    with local_cluster(num_cpus=2, num_gpus=8, gpus_are_logical=True, object_store_bytes=256 * MIB) as started:
        yield started


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    worst: dict[str, dict[str, float]] = defaultdict(dict)
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        if report.when != "call" or "/parity/" not in report.fspath:
            continue
        folder = Path(report.fspath).stem.removeprefix("test_")
        for kind, error in report.user_properties:
            worst[folder][kind] = max(error, worst[folder].get(kind, 0.0))
    if worst:
        terminalreporter.section("parity: largest error by folder")
    for folder, kinds in sorted(worst.items()):
        listed = ", ".join(f"{kind} {error:.1e}" for kind, error in sorted(kinds.items()))
        terminalreporter.write_line(f"{folder}: {listed}")
