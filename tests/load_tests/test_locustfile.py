"""The Locust file as `locust --headless` runs it, against the stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.load_tests.standin import StandIn, served

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 90


def locust(url: str, *, client: str, users: int = 1) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Returns exit code, statistics by name, and what else was said."""
    command = [sys.executable, "-m", "locust", "--headless", "-f", str(ROOT / "load_tests" / "locustfile.py"), "--json"]
    flags = ["--host", url, "--users", str(users), "--spawn-rate", "10", "--client", client]
    ended = subprocess.run([*command, *flags], cwd="/", capture_output=True, text=True, timeout=TIMEOUT_S)
    return ended.returncode, {row["name"]: row for row in json.loads(ended.stdout)}, ended.stderr


def test_every_user_plays_a_stream_and_the_run_ends_with_the_last_one() -> None:
    standin = StandIn(capacity=10_000)
    flags = "--rate 5 --duration 2 --shape uniform --num-clip 1 2 --slip-p99-ms 5000 --slip-most-ms 5000"
    with served(standin) as url:
        code, rows, said = locust(url, client=flags, users=2)
    assert code == 0, said
    counts = {name: row["num_requests"] for name, row in rows.items()}
    assert counts == {"/v1/videos accepted": 20, "first block": 20, "stood still": 20, "/v1/videos completed": 20}
    assert {form["num_clip"] for form in standin.forms} == {"1", "2"}


def test_refusals_are_answers_and_an_invalid_run_is_a_failure() -> None:
    with served(StandIn(capacity=0)) as url:
        code, rows, _ = locust(url, client="--rate 5 --duration 1 --shape uniform --slip-p99-ms 0.0001")
    assert code == 1
    assert rows["/v1/videos refused: no_capacity"]["num_failures"] == 0
    assert rows["invalid"]["num_failures"] == 1
