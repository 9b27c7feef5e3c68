"""The private cluster: what it asks for, and what it leaves as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_cluster.cluster_guard import leftovers
from ray_cluster.errors import LocalClusterError
from ray_cluster.local import LocalCluster, local_cluster


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
