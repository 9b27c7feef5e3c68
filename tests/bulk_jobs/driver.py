"""A bulk job as a process of its own: `python -m tests.bulk_jobs.driver SETTINGS.json`.

The same path as `live-avatar bulk run`, but for the program of the ranks and limits that flags do not set.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from serve_app.bulk.command import run_bulk


def say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Told:
    """A listener that prints one JSON line per event."""

    def planned(self, plan: Any) -> None:
        say({"planned": plan})

    def progress(self, state: Any) -> None:
        say({"progress": state})


def main(path: Path) -> int:
    told = json.loads(path.read_text())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    code, summary = run_bulk(
        told["settings"],
        listener=Told(),
        is_stopped=stop.is_set,
        program=told["program"],
        changes=told["changes"],
    )
    say({"summary": summary})
    say({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})
    return int(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
