"""Reports of a run in its output folder: what is done, what failed, how far it is, and every step in between.

output.jsonl      a line per video: id, address, frames, seconds, digest, GPU seconds, attempts
errors.jsonl      the rows that failed, as they were written, with their errors: a manifest again
progress.json     replaced every few seconds
summary.json      at the end
ledger/RUN.jsonl  every attempt of this run, one writer's alone
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from serve_app.bulk.row import BadRow, Document
from serve_app.errors import AvatarError, InvalidRequestError, OutputError
from serve_app.storage.base import Folder
from serve_app.storage.folders import is_remote

log = logging.getLogger(__name__)

OUTPUT, ERRORS, PROGRESS, SUMMARY = "output.jsonl", "errors.jsonl", "progress.json", "summary.json"


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
            # Half a character, which JSON can hold and UTF-8 cannot, becomes an escape that JSON knows.
            self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace")
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
        """Lets go of the file; raises OutputError when its end cannot be written."""
        try:
            self._file.close()
        except OSError as error:
            raise self._not_written(error) from error

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
        self._ledger = GrowingFile(folder, f"ledger/{run_id}.jsonl", spool)
        self._output = GrowingFile(folder, OUTPUT, spool)
        self._errors = GrowingFile(folder, ERRORS, spool)
        self._is_ours = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Brings the rest to a bucket; what fails then is raised, unless something failed before."""
        try:
            with ExitStack() as closing:
                for file in (self._ledger, self._output, self._errors):
                    closing.callback(file.close)
                self._sync()
        except AvatarError as failure:
            if error is None:
                raise
            log.warning("reports not whole", extra={"folder": self._folder.uri(), "error": str(failure)})

    def let_go(self) -> None:
        """Writes nothing any more but the ledger: the folder is another run's; from any thread."""
        self._is_ours = False

    def step(self, event: str, about: Document) -> None:
        """Notes a step in the ledger."""
        self._ledger.append({"at": round(time.time(), 3), "event": event, **about})

    def done(self, result: Document) -> None:
        """Tells of a video that is there."""
        if self._is_ours:
            self._output.append(_output_line(result))

    def failed(self, row: BadRow) -> None:
        """Tells of a row that got no video."""
        if self._is_ours:
            self._errors.append(row.as_json())

    def progress(self, state: Document) -> None:
        """Tells how far the run is; where the folder does not answer, it is told the next time."""
        with self._may_fail("progress not written"):
            self._write(PROGRESS, state)

    def summary(self, state: Document) -> None:
        """Tells what became of the run; raises StorageError."""
        self._write(SUMMARY, state)

    def sync(self) -> None:
        """Brings what is new to a bucket; where that does not answer, the next time."""
        with self._may_fail("reports not copied"):
            self._sync()

    def _sync(self) -> None:
        for file in (self._ledger, self._output, self._errors) if self._is_ours else (self._ledger,):
            file.sync()

    def _write(self, name: str, state: Document) -> None:
        if self._is_ours:
            self._folder.write(name, json.dumps(state, indent=1).encode())

    @contextmanager
    def _may_fail(self, event: str) -> Iterator[None]:
        try:
            yield
        except AvatarError as error:
            log.warning(event, extra={"folder": self._folder.uri(), "error": str(error)})


def check_not_overwritten(source: Folder, name: str, output: Folder) -> None:
    """Raises InvalidRequestError for a manifest that this run would empty for a report, by whatever name it goes."""
    if any(_is_one_file(source.uri(name), output.uri(report)) for report in (OUTPUT, ERRORS)):
        raise InvalidRequestError(
            f'the manifest "{source.uri(name)}" is a report that this run writes anew',
            remedy="run the manifest of before: what is done is skipped, what failed is tried again; or move the "
            "report to another folder first",
            param="manifest",
        )


def _is_one_file(one: str, other: str) -> bool:
    """Whether two addresses lead to one file; on a disk, over links of both kinds."""
    if is_remote(one) or is_remote(other):
        return one == other
    with suppress(OSError):  # one of them is not there
        return Path(one).samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


def _output_line(result: Document) -> Document:
    told = ("custom_id", "uri", "num_frames", "seconds", "size", "sha256", "gpu_s", "attempts", "metadata", "warnings")
    return {name: result[name] for name in told}
