"""The open-loop client under Locust: its command line, its page, its statistics, and clients on many machines.

    locust --headless -f load_tests/locustfile.py --host http://127.0.0.1:8000 --users 2 --client "--rate 3"

Locust's own users wait for answers, so that a slow service gets less load. Here a user is a whole open-loop client: a
process of its own that plays a schedule of absolute times, drawn from a seed, and tells Locust what it saw. Users and
spawn rate so add streams of arrivals; --client holds the flags of load_tests.open_loop.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from locust import User, events, task
from locust.exception import StopUser
from locust.runners import LocalRunner, WorkerRunner

ROOT = Path(__file__).parents[1]
_STOP_S = 10


@events.init_command_line_parser.add_listener
def add_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--client",
        default="--rate 1 --duration 30",
        help="flags of load_tests.open_loop for each user: schedule, mix, seed; not --host, --stream, --outcomes",
    )


class OpenLoopClient(User):
    """One stream of arrivals; the streams of all users are independent of each other and of the users' number."""

    num_begun = 0
    num_playing = 0

    def on_start(self) -> None:
        """Takes the number of the stream: the same one in every run in which users come in the same order."""
        runner = self.environment.runner
        worker = runner.worker_index if isinstance(runner, WorkerRunner) else 0
        self.stream = f"{worker}.{OpenLoopClient.num_begun}"
        OpenLoopClient.num_begun += 1
        OpenLoopClient.num_playing += 1

    def on_stop(self) -> None:
        """Ends a run without a time limit, and without a page on which to begin another, with its last stream."""
        OpenLoopClient.num_playing -= 1
        runner, options = self.environment.runner, self.environment.parsed_options
        is_last = OpenLoopClient.num_playing == 0 and OpenLoopClient.num_begun >= (options.num_users or 1)
        if is_last and options.headless and isinstance(runner, LocalRunner):
            runner.quit()

    @task
    def play(self) -> None:
        """Plays the whole schedule once."""
        flags = [*shlex.split(self.environment.parsed_options.client), f"--stream={self.stream}", "--outcomes=-"]
        with _client([f"--host={self.host}", *flags]) as client:
            assert client.stdout is not None
            assert client.stderr is not None
            for line in client.stdout:
                self._tell(json.loads(line))
            report = client.stderr.read()
            if client.wait() != 0:
                self._fire("RUN", "invalid", 0.0, error=report.strip())
        raise StopUser

    def _tell(self, outcome: Mapping[str, Any]) -> None:
        """Counts what became of one request in Locust's statistics; a refusal is an answer, a fault a failure."""
        if "fault" in outcome:
            self._fire("FAULT", "/v1/videos", outcome.get("answered_s", 0.0), error=outcome["fault"])
        if "refusal" in outcome:
            self._fire("POST", f"/v1/videos refused: {outcome['refusal']}", outcome["answered_s"])
        if "video_id" in outcome:
            self._fire("POST", "/v1/videos accepted", outcome["answered_s"])
        if "first_block_s" in outcome:
            self._fire("GET", "first block", outcome["first_block_s"], num_bytes=outcome["num_bytes"])
        if "is_cut" in outcome:
            self._fire("PLAY", "stood still", outcome["stalled_s"], error="cut short" if outcome["is_cut"] else None)
        if "ended_s" in outcome:
            is_failed = outcome["ending"] == "failed"
            error = outcome.get("failure") if is_failed else None
            self._fire("VIDEO", f"/v1/videos {outcome['ending']}", outcome["ended_s"], error=error)
        if outcome.get("is_promise_kept") is False:
            self._fire("PROMISE", "broken", outcome["ended_s"], error=f"promised {outcome['promise_s']:.1f} s")

    def _fire(self, kind: str, name: str, seconds: float, *, num_bytes: int = 0, error: str | None = None) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=seconds * 1e3,
            response_length=num_bytes,
            exception=None if error is None else RuntimeError(error),
            context={},
        )


@contextmanager
def _client(flags: list[str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "load_tests.open_loop", *flags]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as client:  # noqa: S603
        try:
            yield client
        finally:
            if client.poll() is None:
                client.terminate()
                client.wait(_STOP_S)
