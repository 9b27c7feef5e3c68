"""Processes that own something on a cluster and wait to be killed. Run as `python -m tests.ray_cluster.drivers`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from ray_cluster.local import MIB, LocalCluster, local_cluster
from ray_cluster.replica_group import ReplicaGroup
from tests.ray_cluster.conftest import TIMEOUTS, bundles, eventually, in_time, spec
from tests.ray_cluster.fake_program import FakeTask

Told = dict[str, Any]
ROOT = Path(__file__).parents[2]


@contextmanager
def driver(folder: Path, *, shared: LocalCluster | None = None) -> Iterator[tuple[subprocess.Popen[bytes], Told]]:
    """Starts a driver; yields it, with what it told, once its task is under way."""
    told = folder / "told.json"
    command = [sys.executable, "-m", "tests.ray_cluster.drivers", str(folder), *([shared.address] if shared else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(shared.environment if shared else {})}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: told.exists() or process.poll() is not None, within_s=60)
            yield process, json.loads(told.read_text())
        finally:
            process.kill()


def main(folder: Path, address: str = "") -> None:
    """Owns a group that runs a task, on the cluster at `address` or on one of its own."""
    if not address:
        with local_cluster(num_cpus=2, num_gpus=4, object_store_bytes=128 * MIB):
            own_group(folder)
    else:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
        own_group(folder)


def own_group(folder: Path) -> None:
    group = ReplicaGroup("owned", spec(folder), bundles(2), timeouts=TIMEOUTS)
    group.start()
    items = group.run(FakeTask(10_000, acts={(1, 5): "hang"}), item_limit_s=in_time)
    next(items)
    gang = group.gang
    assert gang is not None
    eventually(lambda: len(gang.heartbeats()) == 2)
    told = {
        "pids": [beat.process.pid for beat in gang.heartbeats()],
        "job": ray.get_runtime_context().get_job_id(),
        "folder": ray._private.worker.global_worker.node.get_temp_dir_path(),
    }
    (folder / "telling").write_text(json.dumps(told))
    (folder / "telling").rename(folder / "told.json")
    threading.Event().wait(120)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
