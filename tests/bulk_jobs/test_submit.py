"""A manifest as a Ray job: submitted by hand, stopped, and continued by `live-avatar submit`, with the tiny model."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bulk_jobs.conftest import eventually, lines_of
from tests.bulk_jobs.manifests import good_row, write_manifest
from tests.ray_cluster.heads import BIN, ray_head

COUNT = 4
END_S = 200.0


def environment(cache: Path) -> dict[str, str]:
    """Of the head and of its users: a token of their own, and the commands of this environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    return {**kept, **token, "PATH": f"{BIN}:{kept['PATH']}", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache)}


def run(*command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=END_S, check=False)


def test_a_job_that_was_stopped_is_continued_by_another(folder: Path) -> None:
    rows = [good_row(number, audio=f"voice_{number + 2}.wav") for number in range(COUNT)]
    manifest, out = write_manifest(folder / "manifest.jsonl", rows), folder / "out"
    work = [str(manifest), f"--out={out}", "--gpus=none", "--leader-cpus=0.1", "--cpus-per-rank=0.1"]
    env = environment(folder / "cache")
    with TemporaryDirectory(prefix="h-", dir="/tmp") as short, ray_head(Path(short), env, num_cpus=2) as head:
        by_hand = ["ray", "job", "submit", f"--address={head.address}", "--submission-id=videos-1", "--no-wait", "--"]
        submitted = run(*by_hand, "live-avatar", "bulk", "run", *work, "--address=auto", env=env)
        assert submitted.returncode == 0, submitted.stderr
        eventually(lambda: any(out.glob("*/result.json")), within_s=END_S)
        stopped = run("ray", "job", "stop", "videos-1", f"--address={head.address}", env=env)
        assert stopped.returncode == 0, stopped.stderr
        before = {path.parent.name: path.read_bytes() for path in out.glob("*/result.json")}
        continued = run("live-avatar", "submit", *work, f"--address={head.address}", env=env)
    assert continued.returncode == 0, continued.stdout + continued.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rows"]["done"] + summary["rows"]["skipped"] == COUNT
    assert summary["rows"]["skipped"] >= len(before) >= 1
    assert {name: (out / name / "result.json").read_bytes() for name in before} == before
    assert len(lines_of(out / "output.jsonl")) == COUNT
