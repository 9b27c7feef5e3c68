"""The disk of the data folder: room for what was accepted is set aside until it is written or no longer wanted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from serve_app.jobs.admission import Lack
from serve_app.jobs.submission import Submission
from serve_app.planning.host import check_disk


class Usage(Protocol):
    """Bytes of a disk, as `shutil.disk_usage` gives them."""

    @property
    def total(self) -> int: ...
    @property
    def free(self) -> int: ...


@dataclass
class DataDisk:
    """A Host that knows its disk. `disk_bytes` says what a video's files take."""

    folder: Path
    disk_bytes: Callable[[Submission], int]
    usage: Callable[[Path], Usage] = shutil.disk_usage
    _held: dict[str, int] = field(default_factory=dict)

    def lacks(self, work: Submission) -> Lack | None:
        """Returns what is missing for one more video beside those that were accepted."""
        usage = self.usage(self.folder)
        free_bytes = usage.free - sum(self._held.values())
        full = check_disk(self.disk_bytes(work), free_bytes=free_bytes, total_bytes=usage.total)
        return None if full is None else Lack("disk", full.needed_bytes, full.available_bytes)

    def hold(self, job_id: str, num_bytes: int) -> None:
        """Sets room aside."""
        self._held[job_id] = num_bytes

    def free(self, job_id: str) -> None:
        """Gives it back: the job has ended."""
        self._held.pop(job_id, None)
