"""The benchmark runs on torch alone and reports every part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 200


def run(*command: str) -> str:
    found = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=TIMEOUT_S, check=True, cwd=ROOT
    )
    return found.stdout


def test_reports_seconds_work_and_ceiling_of_every_part(tmp_path: Path) -> None:
    options = [
        "--size",
        "64*64",
        "--infer-frames",
        "12",
        "--sample-steps",
        "2",
        "--json",
        str(tmp_path / "report.json"),
    ]
    table = run("-m", "serve_app.engine.bench", *options)
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert [part["name"] for part in report["parts"]] == [
        "text encoder",
        "speech encoder, 10 s",
        "VAE encode, 73 frames",
        "sink prefill",
        "DiT call",
        "VAE decode",
    ]
    assert all(part["seconds"] > 0 and part["tflop"] > 0 and part["name"] in table for part in report["parts"])
    assert report["ceiling_tflops"] > 0
    assert report["frames_per_second"] * report["block_seconds"] == pytest.approx(12)
    assert report["peak_bytes"] > 2**20


def test_encoding_is_timed_apart() -> None:
    assert run("load_tests/bench_encoding.py", "64*64").startswith("encode 64x64: ")
