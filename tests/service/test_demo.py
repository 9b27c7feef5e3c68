"""`live-avatar demo` and `serve` as commands: what they print, leave and refuse."""

from __future__ import annotations

import io
import signal
import socket
from pathlib import Path

import av
import psutil
import pytest

from tests.end_to_end.conftest import RunCli, live_avatar, started

__all__ = ["live_avatar"]

ALL_INTERFACES = "0.0.0.0"


def frames_of(path: Path) -> int:
    with av.open(io.BytesIO(path.read_bytes())) as container:
        return sum(1 for _ in container.decode(video=0))


def test_the_demo_sends_the_sample_through_the_service_and_leaves_the_video_alone(
    live_avatar: RunCli, tmp_path: Path
) -> None:
    done = live_avatar("demo", "--out=out/demo.mp4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out/demo.mp4: ")
    for word in ("queued", "started", "completed"):
        assert word in done.stderr
    assert frames_of(tmp_path / "out" / "demo.mp4") == 78
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["demo.mp4"]
    assert not [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(tmp_path)]


def test_a_demo_that_is_stopped_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    with started("demo", "--out=out/demo.mp4", cwd=tmp_path, cache=cache) as demo:
        demo.wait_for(b"starting the service")
        assert demo.stop(signal.SIGINT) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([f"--host={ALL_INTERFACES}"], f"--host {ALL_INTERFACES} lets other machines in, and this version has no keys"),
        (["--config=nowhere.yaml"], '"nowhere.yaml" cannot be read'),
        (["--config=bad.yaml"], "stages=0 is not a whole number from 1 to 16"),
        (["--config=gpus.yaml"], "the pools want 4 GPUs for their groups, but 0 may be used here"),
    ],
)
def test_a_service_that_cannot_be_is_refused_at_once(
    live_avatar: RunCli, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "bad.yaml").write_text("pools: [{name: a, layout: stages=0}]")
    (tmp_path / "gpus.yaml").write_text("pools: [{name: a, layout: ulysses=4, gpu: '24'}]")
    refused = live_avatar("serve", *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert said in refused.stderr


def test_a_port_that_is_taken_is_named(live_avatar: RunCli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = live_avatar("serve", f"--port={port}", f"--data-dir={tmp_path / 'data'}", cwd=tmp_path)
    assert refused.returncode == 2
    assert f"127.0.0.1:{port} cannot be listened on" in refused.stderr
