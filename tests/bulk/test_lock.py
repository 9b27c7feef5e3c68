"""One driver per output folder: who may have it, when it is taken from whom, and how both are told."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk import lock
from serve_app.bulk.lock import CANCEL, RUN, RunLock, ask_to_cancel
from serve_app.errors import InvalidRequestError, StorageError
from serve_app.schemas.bulk import BulkLimits
from serve_app.storage.base import Stored
from serve_app.storage.local_folder import LocalFolder
from tests.bulk.folders import Bucket, FrailFolder

LIMITS = BulkLimits(heartbeat_every_s=0.02, stale_after_s=0.3)
PATIENT = BulkLimits(heartbeat_every_s=0.02, stale_after_s=30.0)
END_S = 30.0


@pytest.fixture
def out(tmp_path: Path) -> FrailFolder:
    return FrailFolder(tmp_path)


@dataclass
class Owner:
    """Who holds the folder, and what it was told."""

    lost: list[str] = field(default_factory=list)
    is_lost: threading.Event = field(default_factory=threading.Event)

    def lose(self, why: str) -> None:
        self.lost.append(why)
        self.is_lost.set()

    @contextmanager
    def holds(self, folder: LocalFolder, run_id: str = "r1", *, limits: BulkLimits = LIMITS) -> Iterator[RunLock]:
        about = {"manifest": "rows.jsonl"}
        with RunLock(folder, run_id=run_id, about=about, limits=limits, on_lost=self.lose) as held:
            yield held


def told(folder: LocalFolder) -> dict[str, Any]:
    stored = folder.read(RUN)
    assert stored is not None
    content: dict[str, Any] = json.loads(stored.content)
    return content


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def write_run(folder: LocalFolder, **changes: Any) -> None:
    """Writes the run.json of a driver of this machine that runs, and changes something in it."""
    with Owner().holds(folder, "gone"):
        here = told(folder)
    folder.write(RUN, json.dumps({**here, "state": "running", **changes}).encode())


def test_who_holds_the_folder_tells_who_it_is(out: LocalFolder) -> None:
    with Owner().holds(out):
        running = told(out)
    ended = told(out)
    assert (running["run_id"], running["state"], running["manifest"]) == ("r1", "running", "rows.jsonl")
    assert (running["pid"], ended["state"]) == (os.getpid(), "ended")


def test_the_heartbeat_moves(out: LocalFolder) -> None:
    with Owner().holds(out):
        until(lambda: told(out)["beat"] >= 3)


def test_a_second_driver_is_refused_as_long_as_the_first_works(out: LocalFolder) -> None:
    first = Owner()
    with first.holds(out):
        refused = pytest.raises(InvalidRequestError, match=r"is used by another job, r1 on .*; stop it")
        with refused, Owner().holds(out, "r2", limits=PATIENT):
            pass
        assert told(out)["run_id"] == "r1"
    assert first.lost == []


def test_a_folder_whose_driver_ended_is_free_at_once(out: LocalFolder) -> None:
    with Owner().holds(out):
        pass
    with Owner().holds(out, "r2", limits=PATIENT):
        assert told(out)["run_id"] == "r2"


def test_a_driver_that_ends_while_another_one_waits_makes_room(out: LocalFolder) -> None:
    write_run(out, host="elsewhere")
    taken = threading.Event()

    def wait() -> None:
        with Owner().holds(out, "r2", limits=PATIENT):
            taken.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    out.write(RUN, json.dumps({**told(out), "state": "ended"}).encode())
    assert taken.wait(END_S)
    waiting.join(END_S)


def test_a_folder_of_a_killed_process_of_this_machine_is_free_at_once(out: LocalFolder, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; import time; from serve_app.bulk.lock import RunLock; "
        "from serve_app.schemas.bulk import BulkLimits; from serve_app.storage.local_folder import LocalFolder\n"
        f"with RunLock(LocalFolder(Path({str(tmp_path)!r})), run_id='killed', about={{}}, limits=BulkLimits(), "
        "on_lost=print): print('holds', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        process.send_signal(signal.SIGKILL)
    assert (told(out)["run_id"], told(out)["state"]) == ("killed", "running")
    with Owner().holds(out, "r2", limits=PATIENT):
        assert told(out)["run_id"] == "r2"


def test_a_process_that_has_the_number_of_a_dead_one_is_not_taken_for_it(out: LocalFolder) -> None:
    write_run(out, start_ticks=1)
    with Owner().holds(out, "r2", limits=PATIENT):
        assert told(out)["run_id"] == "r2"


@pytest.mark.parametrize("unlike", ["host", "boot", "pids"])
def test_a_driver_of_another_machine_is_gone_once_its_heartbeat_stands_still(out: LocalFolder, unlike: str) -> None:
    write_run(out, start_ticks=1, **{unlike: "another"})
    began_at = time.monotonic()
    with Owner().holds(out, "r2"):
        assert time.monotonic() - began_at >= LIMITS.stale_after_s
        assert told(out)["run_id"] == "r2"


def test_a_heartbeat_that_moves_in_the_last_moment_keeps_the_folder(
    out: LocalFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(out, host="elsewhere")

    def seems_dead(_: Stored) -> bool:
        out.write(RUN, json.dumps({**told(out), "beat": 99}).encode())
        return True

    monkeypatch.setattr(lock, "_is_dead", seems_dead)
    with pytest.raises(InvalidRequestError, match="has just been taken by another job"), Owner().holds(out, "r2"):
        pass
    assert (told(out)["run_id"], told(out)["beat"]) == ("gone", 99)


def test_of_two_that_want_a_free_folder_one_gets_it(out: LocalFolder) -> None:
    begin, outcomes = threading.Barrier(2, timeout=END_S), list[str]()
    leave = threading.Barrier(2, timeout=END_S)

    def want(run_id: str) -> None:
        begin.wait()
        try:
            with Owner().holds(out, run_id, limits=PATIENT):
                outcomes.append(run_id)
                leave.wait()
        except InvalidRequestError:
            outcomes.append("refused")
            leave.wait()

    threads = [threading.Thread(target=want, args=(run_id,)) for run_id in ("r1", "r2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(END_S)
    assert "refused" in outcomes
    assert len({"r1", "r2"} & set(outcomes)) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null"])
def test_a_spoiled_run_json_is_nobody_s(out: LocalFolder, content: bytes) -> None:
    out.write(RUN, content)
    with Owner().holds(out, limits=PATIENT):
        assert told(out)["run_id"] == "r1"


def test_a_driver_whose_folder_was_taken_over_is_told_and_leaves_it_alone(out: LocalFolder) -> None:
    owner = Owner()
    with owner.holds(out):
        out.write(RUN, json.dumps({"run_id": "r2", "state": "running", "host": "elsewhere"}).encode())
        assert owner.is_lost.wait(END_S)
    assert told(out) == {"run_id": "r2", "state": "running", "host": "elsewhere"}
    (why,) = owner.lost
    assert "was taken over by another job, r2 on elsewhere" in why


def test_a_driver_whose_run_json_was_removed_is_told(out: LocalFolder) -> None:
    owner = Owner()
    with owner.holds(out):
        out.delete(RUN)
        assert owner.is_lost.wait(END_S)
    assert out.read(RUN) is None
    assert "run.json" in owner.lost[0]
    assert "is gone" in owner.lost[0]


def test_a_beat_does_not_overwrite_who_came_in_between(out: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner()
    with owner.holds(out) as held:
        really = held._content

        def come_between(state: str) -> bytes:
            out.write(RUN, b'{"run_id": "r2", "state": "running"}')
            return really(state)

        monkeypatch.setattr(held, "_content", come_between)
        assert owner.is_lost.wait(END_S)
        assert told(out)["run_id"] == "r2"


@pytest.mark.parametrize("broken", ["read", "write_if"])
def test_a_folder_that_is_away_for_a_while_is_not_lost(
    out: FrailFolder, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    owner = Owner()
    with caplog.at_level(logging.WARNING), owner.holds(out):
        out.broken = frozenset([broken])
        until(lambda: len(caplog.records) >= 2)
        out.broken = frozenset()
        beat = told(out)["beat"]
        until(lambda: told(out)["beat"] > beat)
    assert owner.lost == []
    assert {record.message for record in caplog.records} == {"heartbeat not written"}


def test_a_bucket_that_is_away_at_the_end_hides_no_other_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = Bucket(tmp_path)

    def work() -> None:
        with Owner().holds(bucket, limits=BulkLimits(heartbeat_every_s=0.04, stale_after_s=0.1)):
            bucket.broken = frozenset(["read", "list"])
            bucket.list()

    with pytest.raises(StorageError, match="list"):
        work()
    assert [record.message for record in caplog.records] == ["end of the run not told"]


def test_a_run_is_asked_to_stop(out: LocalFolder) -> None:
    with Owner().holds(out) as held:
        assert not held.is_cancelled()
        assert ask_to_cancel(out)
        assert held.is_cancelled()


def test_what_an_earlier_run_was_asked_does_not_stop_this_one(out: LocalFolder) -> None:
    with Owner().holds(out):
        ask_to_cancel(out)
    with Owner().holds(out, "r2") as held:
        assert out.read(CANCEL) is not None
        assert not held.is_cancelled()
        ask_to_cancel(out)
        assert held.is_cancelled()


def test_nobody_is_asked_to_stop_where_nobody_works(out: LocalFolder) -> None:
    assert not ask_to_cancel(out)
    with Owner().holds(out):
        pass
    assert not ask_to_cancel(out)
    write_run(out, start_ticks=1)
    assert not ask_to_cancel(out)
    assert out.read(CANCEL) is None


def test_a_driver_of_another_machine_can_be_asked_to_stop(out: LocalFolder) -> None:
    write_run(out, host="elsewhere", start_ticks=1)
    assert ask_to_cancel(out)


def test_a_folder_that_does_not_answer_does_not_stop_a_run(out: FrailFolder) -> None:
    with Owner().holds(out, limits=BulkLimits()) as held:
        ask_to_cancel(out)
        out.broken = frozenset(["read"])
        assert not held.is_cancelled()
        out.broken = frozenset()
        assert held.is_cancelled()


def test_the_thread_ends_with_the_run(out: LocalFolder) -> None:
    with Owner().holds(out):
        assert any(thread.name == "run-heartbeat" for thread in threading.enumerate())
    assert not any(thread.name == "run-heartbeat" for thread in threading.enumerate())


def test_a_machine_is_told_apart_by_more_than_its_name() -> None:
    here = vars(lock.Machine.this())
    assert set(here) == {"host", "boot", "pids"}
    assert all(here.values())
