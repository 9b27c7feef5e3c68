"""What is told from outside: a job that works, one whose driver is gone, and one that has not come to its end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk.lock import RUN, RunLock
from serve_app.bulk.status import report_of, status_of
from serve_app.errors import InputNotFoundError
from serve_app.schemas.bulk import BulkLimits
from serve_app.storage.local_folder import LocalFolder

LIMITS = BulkLimits(heartbeat_every_s=0.02, stale_after_s=5.0)
PROGRESS = {"run_id": "r1", "state": "running", "rows": {"total": 3}}


@pytest.fixture
def out(tmp_path: Path) -> LocalFolder:
    folder = LocalFolder(tmp_path / "out")
    folder.write("progress.json", json.dumps(PROGRESS).encode())
    return folder


@contextmanager
def held(out: LocalFolder) -> Iterator[dict[str, Any]]:
    """Works in the folder; yields what its run.json tells."""
    with RunLock(out, run_id="r1", about={}, limits=LIMITS, on_lost=print):
        yield json.loads(Path(out.uri(RUN)).read_bytes())


def leave(out: LocalFolder, **changes: Any) -> None:
    """Writes the run.json of a driver that worked until it was killed."""
    with held(out) as told:
        pass
    out.write(RUN, json.dumps({**told, **changes}).encode())


def test_a_job_that_works_is_told_as_it_tells(out: LocalFolder) -> None:
    with held(out):
        assert status_of(out.uri()) == PROGRESS
    assert status_of(out.uri()) == PROGRESS


def test_a_driver_of_this_machine_that_is_gone_is_seen_at_once(out: LocalFolder) -> None:
    leave(out, start_ticks=1)
    assert status_of(out.uri(), stale_after_s=600) == {**PROGRESS, "state": "gone"}


def test_a_driver_elsewhere_is_gone_once_its_heartbeat_stands_still(out: LocalFolder) -> None:
    leave(out, host="elsewhere")
    assert status_of(out.uri(), stale_after_s=0.05)["state"] == "gone"


def test_a_driver_elsewhere_whose_heartbeat_moves_works(out: LocalFolder) -> None:
    leave(out, host="elsewhere")
    told = json.loads(Path(out.uri(RUN)).read_bytes())
    beating = threading.Timer(0.1, lambda: out.write(RUN, json.dumps({**told, "beat": 99}).encode()))
    beating.start()
    assert status_of(out.uri(), stale_after_s=30)["state"] == "running"
    beating.join()


def test_the_report_is_that_of_the_last_run(out: LocalFolder) -> None:
    out.write("summary.json", b'{"state": "all_good"}')
    assert report_of(out.uri()) == {"state": "all_good"}


def test_a_run_without_an_end_has_no_report_and_the_status_tells_why(out: LocalFolder) -> None:
    leave(out)
    with pytest.raises(InputNotFoundError, match=r"has not come to its end.*see live-avatar bulk status"):
        report_of(out.uri())


def test_where_no_job_began_nothing_is_told(tmp_path: Path) -> None:
    for ask in (status_of, report_of):
        with pytest.raises(InputNotFoundError, match=r"no job has begun in .*name the --out of a job"):
            ask(str(tmp_path / "nowhere"))
