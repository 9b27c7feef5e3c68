"""The driver of a folder that is watched: what is new is taken a little at a time, and what fails for a while comes."""

from __future__ import annotations

import itertools
import json
import queue
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk import course, incoming, job
from serve_app.bulk.job import BulkJob, ExitCode
from serve_app.bulk.lanes.messages import LaneStatus, RowOrder, RowReport
from serve_app.bulk.manifests.folders import TaskFolder
from serve_app.errors import StorageError
from serve_app.jobs.admission import Fits
from serve_app.jobs.messages import GroupCondition
from serve_app.schemas.bulk import BulkConfig
from tests.bulk.folders import FrailFolder
from tests.bulk.jobs import LIMITS, Listener, NoLanes, a_result, a_row, ran
from tests.bulk.rows import write_portrait, write_voice


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_portrait(tmp_path / "me.png")
    write_voice(tmp_path / "voice.wav")
    return tmp_path


class AtOnce:
    """One lane that makes every video at once: `job.LaneWatch` and `job.FanOut`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reports: queue.SimpleQueue[RowReport | Exception] = queue.SimpleQueue()
        self.made: list[str] = []
        monkeypatch.setattr(job, "LaneWatch", lambda *_, **__: self)
        monkeypatch.setattr(job, "FanOut", lambda *_, **__: nullcontext(self))
        monkeypatch.setattr(course, "_LOOK_EVERY_S", 0.001)
        monkeypatch.setattr(NoLanes, "start", lambda _: None)

    def send(self, lane: str, order: RowOrder) -> None:
        self.made.append(order.custom_id)
        self.reports.put(RowReport(order.seq, order.attempt, lane, result=a_result(order.custom_id, order.row_key)))

    def look(self) -> dict[str, LaneStatus]:
        return {"lane": LaneStatus("lane", GroupCondition.READY, asked_at=time.monotonic())}

    def stop(self) -> None:
        """Nothing runs."""


@dataclass
class Queue:
    """A folder that is watched."""

    folder: FrailFolder
    job: BulkJob

    @classmethod
    def of(cls, folder: Path, *, num_tasks: int, **changes: Any) -> Queue:
        tasks = FrailFolder(folder)
        for number in range(num_tasks):
            task = {key: value for key, value in a_row("", seed=number, **changes).items() if key != "custom_id"}
            tasks.write(f"task_{number:03}.json", json.dumps(task).encode())
        config = BulkConfig(limits=LIMITS.model_copy(update={"watch_every_s": 1e-9}))
        job = BulkJob(
            source=TaskFolder(tasks),
            output=str(folder / "out"),
            config=config,
            judge=lambda _: Fits(1.0),
            num_groups=1,
            watches=True,
        )
        return cls(tasks, job)


def test_what_waits_in_a_watched_folder_is_taken_some_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes, listener = AtOnce(monkeypatch), Listener()
    monkeypatch.setattr(incoming, "ROWS_AT_ONCE", 5)
    watched = Queue.of(folder, num_tasks=23)
    code, summary = ran(watched.job, listener=listener, is_stopped=lambda: len(lanes.made) == 23)
    assert (code, summary["rows"]["done"]) == (ExitCode.ALL_GOOD, 23)
    totals = [state["rows"]["total"] for state in listener.states]
    assert max(after - before for before, after in itertools.pairwise(totals)) == 5
    assert any(state["rows"]["done"] for state in listener.states if state["rows"]["total"] < 23)


@pytest.mark.parametrize(("broken", "after"), [("list", 0), ("read", 4)])
def test_a_watched_folder_that_is_away_for_a_while_ends_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str, after: int
) -> None:
    lanes = AtOnce(monkeypatch)
    monkeypatch.setattr(incoming, "ROWS_AT_ONCE", 2)
    watched = Queue.of(folder, num_tasks=7)

    def is_stopped() -> bool:
        is_away = len(lanes.made) == after and len(caplog.records) < 3
        watched.folder.broken = frozenset([broken] if is_away else [])
        return len(lanes.made) == 7

    code, summary = ran(watched.job, is_stopped=is_stopped)
    assert (code, summary["rows"]["done"]) == (ExitCode.ALL_GOOD, 7)
    assert {record.message for record in caplog.records} == {"watched folder not read"}


def test_results_that_cannot_be_read_during_a_watch_are_left_to_the_lanes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise StorageError("the disk is away", remedy="bring it back")

    lanes = AtOnce(monkeypatch)
    monkeypatch.setattr(job, "read_result", away)
    watched = Queue.of(folder, num_tasks=3)
    code, _ = ran(watched.job, is_stopped=lambda: len(lanes.made) == 3)
    assert (code, lanes.made) == (ExitCode.ALL_GOOD, ["task_000", "task_001", "task_002"])
    assert {record.message for record in caplog.records} == {"results not looked for"}


def test_a_watch_that_is_stopped_before_it_took_all_that_it_found_is_not_all_good(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AtOnce(monkeypatch)
    monkeypatch.setattr(incoming, "ROWS_AT_ONCE", 2)
    watched, listener = Queue.of(folder, num_tasks=7, prompt=" "), Listener()

    def is_stopped() -> bool:
        return any(state["rows"]["total"] for state in listener.states)

    code, summary = ran(watched.job, listener=listener, is_stopped=is_stopped)
    assert (code, summary["rows"]["failed"]) == (ExitCode.CANCELLED, 4)
