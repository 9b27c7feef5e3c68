"""Outlives the driver of a private cluster and clears up behind it: cluster_guard.py FOLDER DRIVER_PID.

Left alone, Ray's agents live on for a minute after a driver was killed, a stopped rank for ever.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT_S = 20.0


def main(folder: Path, driver: int) -> None:
    """Waits until the driver closes its end of standard input, by dying at the latest, then ends what it left."""
    for kind in (signal.SIGINT, signal.SIGTERM):  # Ray stops a job with all that descends from its driver
        signal.signal(kind, signal.SIG_IGN)
    sys.stdin.read()
    deadline = time.monotonic() + LIMIT_S
    while (left := list(leftovers(folder, driver=driver))) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def leftovers(folder: Path, *, driver: int) -> Iterator[int]:
    """Yields the processes that write into the cluster's folder: Ray's own, ranks, and what those started.

    A driver that lives writes there too, and whatever it forked: those are spared.
    """
    for entry in Path("/proc").iterdir():
        is_spared = entry.name == str(driver) or _parent(entry) == driver
        if entry.name.isdecimal() and not is_spared and _writes_into(entry, folder):
            yield int(entry.name)


def _writes_into(process: Path, folder: Path) -> bool:
    with contextlib.suppress(OSError):  # gone, or of another user
        for opened in (process / "fd").iterdir():
            # /proc shows with which rights a file was opened.
            if str(opened.readlink()).startswith(f"{folder}/") and opened.lstat().st_mode & stat.S_IWUSR:
                return True
    return False


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
