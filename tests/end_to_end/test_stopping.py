"""Ctrl-C and SIGTERM: the render ends at once, by the usual exit code, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.end_to_end.conftest import ROOT, TIMEOUT_S, started
from tests.media.conftest import WriteWav

NUM_FRAMES = 1_000
NUM_RANKS = 2


@pytest.mark.parametrize("progress", [f" 0/{NUM_FRAMES} ", f" 12/{NUM_FRAMES} "], ids=["while loading", "in a block"])
@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_stopped_render_leaves_nothing(
    inputs: Path, cache: Path, write_wav: WriteWav, kind: signal.Signals, code: int, said: str, progress: str
) -> None:
    write_wav(0.3 * np.sin(np.arange(NUM_FRAMES * 640) / 20), 16_000)
    before = set(inputs.rglob("*"))
    flags = ["--image=portrait.png", "--audio=voice.wav", "--prompt=A person talks.", "--size=64*64"]
    with started("render", *flags, "--out=made/video.mp4", cwd=inputs, cache=cache) as running:
        running.wait_for(progress.encode())
        assert running.stop(kind) == code, running.stderr.decode()
    assert running.stderr.endswith(f"live-avatar: {said}; nothing was written\n".encode())
    assert b"Traceback" not in running.stderr
    assert set(inputs.rglob("*")) == before


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["Ctrl-C", "SIGTERM", "SIGKILL"])
def test_a_stopped_gang_leaves_no_process_and_no_file(
    inputs: Path, cache: Path, write_wav: WriteWav, kind: signal.Signals
) -> None:
    write_wav(0.3 * np.sin(np.arange(NUM_FRAMES * 640) / 20), 16_000)
    before = set(inputs.rglob("*"))
    flags = ["--image=portrait.png", "--audio=voice.wav", "--prompt=A person talks.", "--size=64*64"]
    with started("render", *flags, "--layout=stages=2", "--out=video.mp4", cwd=inputs, cache=cache) as running:
        running.wait_for(f" 12/{NUM_FRAMES} ".encode())
        descendants = psutil.Process(running.process.pid).children(recursive=True)
        assert len(descendants) > NUM_RANKS
        code = running.stop(kind)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[kind], running.stderr.decode()
    _, alive = psutil.wait_procs(descendants, timeout=30)
    assert alive == []
    left = {path for path in inputs.rglob("*") if path not in before}
    # After SIGKILL nobody is left to remove the unfinished file; its name says what it is.
    assert all(path.name.endswith(".part") for path in left) if kind is signal.SIGKILL else not left


UNANSWERED = """
import os, signal, sys
from ray_cluster.job import HeadUnreachableError
from serve_app import cli
from serve_app.commands import submit

class Jobs:
    def find(self, submission_id):
        return None

    def submit(self, spec):
        os.kill(os.getpid(), signal.SIGINT)
        raise HeadUnreachableError(f"whether job {spec.submission_id} is there is not known", remedy="look")

submit.import_object = lambda _: lambda *_, **__: Jobs()
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_stopped_submit_tells_of_the_job_that_may_be_there() -> None:
    flags = ["--out=s3://b/out", "--address=http://head:8265", "--submission-id=videos-1"]
    done = run(UNANSWERED, "submit", "s3://b/rows.jsonl", *flags)
    assert done.returncode == 130
    assert done.stderr == ("live-avatar: whether job videos-1 is there is not known; look\nlive-avatar: interrupted\n")


STOPPED_BULK = """
import os, signal, sys
from serve_app import cli
from serve_app.commands import bulk
from serve_app.errors import StorageError

def run_bulk(settings, **_):
    os.kill(os.getpid(), signal.SIGTERM)
    raise StorageError("the bucket is away", remedy="wait")

bulk.import_object = lambda _: run_bulk
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_stopped_bulk_job_that_cannot_end_well_says_why() -> None:
    done = run(STOPPED_BULK, "bulk", "run", "s3://b/rows.jsonl", "--out=s3://b/out")
    assert (done.returncode, done.stderr) == (
        143,
        "live-avatar: the bucket is away; wait\nlive-avatar: terminated\n",
    )


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


SWALLOWING = """
import os, signal, sys
from serve_app import cli
from serve_app.commands import render
from serve_app.errors import RenderCancelledError

class DeafSource:
    def __init__(self, **_):
        pass

    def frames(self, task, *, is_cancelled):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            pass
        if is_cancelled():
            raise RenderCancelledError("cancelled at the block border", remedy="start it again")
        yield from ()

render.InProcessSource = DeafSource
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_signal_that_a_library_swallows_ends_the_render_at_the_next_block(inputs: Path, write_wav: WriteWav) -> None:
    write_wav(0.3 * np.sin(np.arange(16_000) / 20), 16_000)
    files = [f"--image={inputs / 'portrait.png'}", f"--audio={inputs / 'voice.wav'}", f"--out={inputs / 'video.mp4'}"]
    done = run(SWALLOWING, "render", *files, "--prompt=A person talks about it.")
    assert done.returncode == 143
    assert done.stderr.endswith("live-avatar: terminated; nothing was written\n")
    assert not (inputs / "video.mp4").exists()
