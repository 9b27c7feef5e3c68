"""Folders for what is on its way: there while their process lives, and not for long afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from serve_app.bulk.spool import opened_spool

HOLD = """
import sys, time
from pathlib import Path
from serve_app.bulk.spool import opened_spool
with opened_spool(Path(sys.argv[1])) as folder:
    (folder / "row.mp4").write_bytes(b"half")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_spool_is_removed_with_what_is_in_it(tmp_path: Path) -> None:
    with opened_spool(tmp_path / "spools") as spool:
        (spool / "row.mp4").write_bytes(b"half")
    assert list((tmp_path / "spools").iterdir()) == []


def test_what_a_killed_lane_left_is_removed_by_the_next_one_and_what_is_used_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, opened_spool(tmp_path) as mine:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with opened_spool(tmp_path) as other:
            assert {path.name for path in tmp_path.iterdir()} == {left.name, mine.name, other.name}
        for held in (left, mine):
            make_old(held)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (left / "row.mp4").exists()
        with opened_spool(tmp_path) as other:
            assert {path.name for path in tmp_path.iterdir()} == {mine.name, other.name}


def test_a_folder_whose_owner_may_be_about_to_take_it_stays_and_so_do_those_of_others(tmp_path: Path) -> None:
    young, other = tmp_path / "avatar-bulk-young", tmp_path / "rc-other"
    for folder in (young, other):
        folder.mkdir()
    make_old(other)
    (tmp_path / "avatar-bulk-link").symlink_to(other)
    with opened_spool(tmp_path):
        assert young.exists()
        assert other.exists()


def make_old(folder: Path) -> None:
    os.utime(folder, (0, 0))
