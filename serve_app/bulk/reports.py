"""Reports of a run in its output folder: what is done, what failed, how far it is, and every step in between.

output.jsonl      a line per video: id, address, frames, seconds, digest, GPU seconds, attempts
errors.jsonl      the rows that failed, as they were written, with their errors: a manifest again
progress.json     replaced every few seconds
summary.json      at the end
ledger/RUN.jsonl  every attempt of this run, one writer's alone
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from serve_app.bulk.row import BadRow, Document
from serve_app.errors import OutputError
from serve_app.storage.base import Folder
from serve_app.storage.folders import is_remote

PROGRESS, SUMMARY = "progress.json", "summary.json"


@dataclass
class GrowingFile:
    """A file of JSON lines in a folder. On a disk it grows there; for a bucket it grows here, and is copied."""

    folder: Folder
    name: str
    spool: Path
    _file: IO[str] = field(init=False)
    _is_changed: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self._path = Path(self.folder.uri(self.name))
        if is_remote(self.folder.uri()):
            self._path = self.spool / self.name
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
        except OSError as error:
            raise self._not_written(error) from error

    def append(self, document: Document) -> None:
        """Adds a line; raises OutputError."""
        try:
            self._file.write(json.dumps(document, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._not_written(error) from error
        self._is_changed = True

    def sync(self) -> None:
        """Brings what is new to a bucket; on a disk it is there."""
        if self._is_changed and is_remote(self.folder.uri()):
            self.folder.put(self._path, self.name)
        self._is_changed = False

    def close(self) -> None:
        self.sync()
        self._file.close()

    def _not_written(self, error: OSError) -> OutputError:
        return OutputError(
            f'"{self._path}" cannot be written: {error.strerror or error}',
            remedy="give the output folder space and the right to write; what was done stays done",
            param="out",
        )


class Reports:
    """All reports of one run; one thread writes."""

    def __init__(self, folder: Folder, *, run_id: str, spool: Path) -> None:
        self._folder = folder
        self.output = GrowingFile(folder, "output.jsonl", spool)
        self.errors = GrowingFile(folder, "errors.jsonl", spool)
        self._ledger = GrowingFile(folder, f"ledger/{run_id}.jsonl", spool)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in (self.output, self.errors, self._ledger):
            file.close()

    def step(self, event: str, about: Document) -> None:
        """Notes a step in the ledger."""
        self._ledger.append({"at": round(time.time(), 3), "event": event, **about})

    def done(self, result: Document) -> None:
        """Tells of a video that is there."""
        self.output.append(_output_line(result))

    def failed(self, row: BadRow) -> None:
        """Tells of a row that got no video."""
        self.errors.append(row.as_json())

    def progress(self, state: Document) -> None:
        self._folder.write(PROGRESS, json.dumps(state, indent=1).encode())

    def summary(self, state: Document) -> None:
        self._folder.write(SUMMARY, json.dumps(state, indent=1).encode())

    def sync(self) -> None:
        """Brings what is new to a bucket."""
        for file in (self.output, self.errors, self._ledger):
            file.sync()


def _output_line(result: Document) -> Document:
    told = ("custom_id", "uri", "num_frames", "seconds", "size", "sha256", "gpu_s", "attempts", "metadata", "warnings")
    return {name: result[name] for name in told}
