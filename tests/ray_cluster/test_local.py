"""The private cluster: what it asks for, and what it leaves as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_cluster import cluster_guard
from ray_cluster.cluster_guard import leftovers
from ray_cluster.errors import LocalClusterError
from ray_cluster.local import LocalCluster, local_cluster
from tests.ray_cluster.conftest import eventually


def test_a_second_cluster_in_a_process_is_refused(cluster: LocalCluster) -> None:
    assert cluster.address
    with (
        pytest.raises(LocalClusterError, match="connected to a Ray cluster already"),
        local_cluster(num_cpus=1, num_gpus=0),
    ):
        pass


def test_environment_and_signals_of_the_process_are_untouched(cluster: LocalCluster) -> None:
    assert not {name for name in cluster.environment if name in os.environ}
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert cluster.environment["RAY_AUTH_MODE"] == "token"
    assert cluster.environment["RAY_AUTH_TOKEN"] not in repr(cluster)


def test_without_the_token_nobody_gets_in(cluster: LocalCluster) -> None:
    code = (
        "from ray._raylet import GcsClient\n"
        f"try: GcsClient({cluster.address!r}).internal_kv_keys(b'', None, timeout=2)\n"
        "except Exception as error: raise SystemExit(type(error).__name__)"
    )
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "AuthenticationError"


WORKS_ALONE = """
import ray
from ray_cluster.local import MIB, local_cluster
with local_cluster(num_cpus=1, num_gpus=0, object_store_bytes=128 * MIB):
    print(ray.get(ray.remote(lambda: "works").remote(), timeout=60))
"""


def test_in_a_job_of_another_cluster_it_shares_nothing_with_that(tmp_path: Path) -> None:
    """Whose state is in Redis, or in a folder, and whose job came with a folder of its own."""
    state = tmp_path / "state"
    of_the_other = {
        "RAY_ADDRESS": "127.0.0.1:1",
        "RAY_REDIS_ADDRESS": "127.0.0.1:1",
        "RAY_external_storage_namespace": "other",
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(state),
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_0.zip"}}),
    }
    done = run(WORKS_ALONE, of_the_other)
    assert done.stdout == "works\n", done.stderr
    assert not state.exists()


JOINS = """
import sys
from ray_cluster.errors import LocalClusterError
from ray_cluster.local import joined_cluster
try:
    with joined_cluster(sys.argv[1]):
        print("joined")
except LocalClusterError as error:
    print(error)
"""


def test_who_has_no_token_is_told_how_to_join(cluster: LocalCluster, tmp_path: Path) -> None:
    done = run(JOINS, {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}, cluster.address)
    assert done.stdout.startswith(f"no Ray cluster lets this process in at '{cluster.address}'"), done.stderr
    assert done.stdout.endswith("with its token in the environment (RAY_AUTH_TOKEN)\n")


def run(code: str, settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env={**kept, **settings}, capture_output=True, text=True, timeout=120)


def test_the_guard_outlives_a_signal_to_all_that_descends_from_the_driver(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    command = [sys.executable, "-I", "-S", cluster_guard.__file__, str(folder), str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as guard:
        eventually(lambda: ignored_signals(guard.pid) >= {signal.SIGINT, signal.SIGTERM})
        guard.send_signal(signal.SIGTERM)
        guard.communicate(b"", timeout=60)
    assert guard.returncode == 0
    assert not folder.exists()


def ignored_signals(pid: int) -> set[int]:
    mask = int(Path(f"/proc/{pid}/status").read_text().partition("SigIgn:")[2].split()[0], base=16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_the_guard_takes_who_writes_there_and_spares_readers_and_the_driver(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    wait = [sys.executable, "-c", "input()"]
    with log.open("w") as writing, log.open() as reading:
        writer = subprocess.Popen(wait, stdin=subprocess.PIPE, stdout=writing)
        reader = subprocess.Popen(
            [*wait], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[reading.fileno()]
        )
        try:
            assert set(leftovers(tmp_path, driver=-1)) == {os.getpid(), writer.pid}
            assert set(leftovers(tmp_path, driver=os.getpid())) == set()
        finally:
            for child in (writer, reader):
                child.communicate(b"\n")
