"""The load client against the real service: one group of the tiny model, in processes of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from load_tests import open_loop
from tests.end_to_end.conftest import cache
from tests.service.conftest import Server, served

__all__ = ["cache"]

LATE_IS_FINE = ("--slip-p99-ms=60000", "--slip-most-ms=60000")
"""These tests share the machine with others; what they look at is not how fast it is."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("load"), cache) as running:
        yield running


def summary_of(server: Server, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    code = open_loop.main([f"--host=http://127.0.0.1:{server.port}", "--json", *LATE_IS_FINE, *flags])
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (code, summary["invalid"], summary["faults"]) == (0, [], {})
    return summary


@pytest.mark.parametrize("files", [[], ["--upload-once"]], ids=["with each", "before"])
def test_all_that_is_accepted_is_made_and_played(
    server: Server, capsys: pytest.CaptureFixture[str], files: list[str]
) -> None:
    flags = ["--shape=uniform", "--rate=2", "--duration=2", "--num-clip", "1", "2", "--readers=play=2,stop=1"]
    summary = summary_of(server, capsys, *flags, *files)
    assert (summary["accepted"], summary["ended"]) == (4, {"completed": 4})
    assert summary["promises"]["rate"] == 1
    assert summary["playback"]["cut"] == 0
    assert summary["playback"]["played"] == 3
    assert summary["seconds"]["first block"]["count"] == 4


def test_what_cannot_be_promised_is_refused_and_all_else_kept(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--shape=burst", "--burst=40", "--rate=40", "--duration=1", "--mix=interactive", "--readers=none"]
    summary = summary_of(server, capsys, *flags, "--upload-once")
    assert set(summary["refused"]) == {"no_capacity"}
    assert summary["seconds"]["retry-after"]["count"] == summary["refused"]["no_capacity"]
    assert summary["ended"] == {"completed": summary["accepted"]}
