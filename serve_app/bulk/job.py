"""The driver of a bulk job, from the manifest to the summary: the main path of this package."""

from __future__ import annotations

import enum
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ray_cluster.errors import GangAbandonedError
from serve_app.bulk.ahead import in_order
from serve_app.bulk.checking import Checker, Judge, check_all
from serve_app.bulk.course import Course, Ending
from serve_app.bulk.identity import row_key
from serve_app.bulk.incoming import Incoming
from serve_app.bulk.inputs import InputReader
from serve_app.bulk.lanes.fan_out import FanOut
from serve_app.bulk.lanes.watch import LaneWatch
from serve_app.bulk.lock import RunLock
from serve_app.bulk.manifests.files import ManifestFile
from serve_app.bulk.manifests.reading import ManifestSource, read_manifest, watch_manifest
from serve_app.bulk.metrics import RunMetrics
from serve_app.bulk.output import RowOutput, committed, open_output, read_result
from serve_app.bulk.plan import Plan, fill
from serve_app.bulk.reports import SUMMARY, Reports, check_not_overwritten
from serve_app.bulk.row import BadRow, Document, Entry
from serve_app.bulk.spool import opened_spool, place_of_drivers
from serve_app.bulk.table import RowState, RowTable, TableRow
from serve_app.bulk.tally import Tally
from serve_app.errors import AvatarError, OutputError, StorageError
from serve_app.schemas.bulk import BulkConfig
from serve_app.storage.base import Folder

log = logging.getLogger(__name__)


class ExitCode(enum.IntEnum):
    """What the command returns."""

    ALL_GOOD = 0
    FATAL = 1
    BAD_MANIFEST = 2
    PARTIAL = 3
    CANCELLED = 4
    BROKEN = 5


class LaneSet(Protocol):
    """Lanes that were made for a run, their ranks not started."""

    actors: dict[str, Any]
    at_once: int

    def model(self) -> str:
        """Returns the digest of what renders; raises AvatarError where nothing does."""
        ...

    def start(self) -> None:
        """Lets the ranks start."""
        ...


OpenLanes = Callable[[str, Callable[[], bool]], AbstractContextManager[LaneSet]]
"""Makes the lanes of the run of that id; raises AvatarError or ClusterError when they have no place.

The second tells whether the run is to stop: then GangAbandonedError soon ends the wait for a place.
"""


class Listener(Protocol):
    """Who is told how the job goes; the command line shows it."""

    def planned(self, plan: Document) -> None: ...
    def progress(self, state: Document) -> None: ...


@dataclass(frozen=True, kw_only=True)
class BulkJob:
    """A manifest and how it is rendered: by so many groups, each with so many lanes.

    `defaults` are settings of rows that say nothing of them; `name` is the checked template of names in the archive,
    None without one; `about` is told in run.json.
    """

    source: ManifestSource
    output: str
    config: BulkConfig
    judge: Judge
    num_groups: int
    lanes_per_group: int = 1
    defaults: Document = field(default_factory=dict)
    watches: bool = False
    aborts_on_invalid: bool = False
    name: str | None = None
    about: Document = field(default_factory=dict)

    def checker(self, spool: Path) -> Checker:
        return Checker(self.config, self.judge, InputReader(self.config, spool), self.defaults, self.name)


def validate(job: BulkJob, *, on_bad: Callable[[BadRow], None]) -> Document:
    """Returns the plan of a job; renders and writes nothing. Raises InvalidRequestError for what is no manifest."""
    plan = Plan()
    with opened_spool(place_of_drivers()) as spool, RowTable(spool / "rows.sqlite3") as table:
        rows = check_all(read_manifest(job.source), job.checker(spool), num_threads=job.config.limits.check_threads)
        fill(table, rows, plan, on_bad=on_bad)
        return plan.as_json(table, num_lanes=job.num_groups, num_ranks=job.config.pool.num_ranks)


def run(
    job: BulkJob, open_lanes: OpenLanes, *, listener: Listener, is_stopped: Callable[[], bool]
) -> tuple[ExitCode, Document]:
    """Renders what of the manifest is not done yet; returns the summary, which is in the output folder, too.

    Raises AvatarError or ClusterError when the job as a whole cannot go on; what was done stays done, and the same
    command continues.
    """
    if isinstance(job.source, ManifestFile):
        check_not_overwritten(job.source.folder, job.source.name, open_output(job.output))
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    with opened_spool(place_of_drivers()) as spool:
        driver = Driver(job, run_id, spool, listener, is_stopped)
        with driver.opened():
            return driver.run(open_lanes)


class Driver:
    """One run of a job."""

    def __init__(
        self, job: BulkJob, run_id: str, spool: Path, listener: Listener, is_stopped: Callable[[], bool]
    ) -> None:
        self._job, self._run_id, self._spool = job, run_id, spool
        self._listener, self._is_asked_to_stop = listener, is_stopped
        self._limits = job.config.limits
        self._output: Folder = open_output(job.output)
        self._lost = ""
        self._tally = Tally(job.config.pool.num_ranks, job.lanes_per_group)
        self._plan = Plan()
        self._checker = job.checker(spool)
        self._metrics = RunMetrics()
        self._synced_at = self._told_at = self._asked_at = time.monotonic()
        self._is_cancelled = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Holds the output folder for this run; what an earlier one left half done, or told of its end, is removed."""
        with (
            RunLock(
                self._output,
                run_id=self._run_id,
                about=self._job.about,
                limits=self._limits,
                on_lost=self._lose,
            ) as self._lock,
            Reports(self._output, run_id=self._run_id, spool=self._spool) as self._reports,
            RowTable(self._spool / "rows.sqlite3") as self._table,
        ):
            self._output.clean()
            self._output.delete(SUMMARY)
            self._reports.progress(self._state("checking"))
            try:
                yield
            except Exception as error:
                self._reports.progress({**self._state("failed"), "error": str(error)})
                raise

    def run(self, open_lanes: OpenLanes) -> tuple[ExitCode, Document]:
        """See `run`."""
        self._reports.step("run began", {"run_id": self._run_id, **self._job.about})
        incoming = self._incoming()
        if incoming is None:
            self._take(self._read())
        num_ranks = self._job.config.pool.num_ranks
        plan = self._plan.as_json(self._table, num_lanes=self._job.num_groups, num_ranks=num_ranks)
        self._listener.planned(plan)
        if self._is_stopped():
            return self._ended(ExitCode.CANCELLED)
        if self._plan.num_bad and self._job.aborts_on_invalid:
            return self._ended(ExitCode.BAD_MANIFEST)
        if not self._counts()[RowState.PENDING] and incoming is None:
            return self._ended(ExitCode.PARTIAL)
        try:
            with open_lanes(self._run_id, self._is_stopped) as lanes:
                return self._ended(_EXIT[self._rendered(lanes, incoming)])
        except GangAbandonedError:  # it was stopped while its groups waited for a place
            return self._ended(ExitCode.CANCELLED)

    def _rendered(self, lanes: LaneSet, incoming: Incoming | None) -> Ending:
        model = lanes.model()
        if incoming is None:
            self._skip_made(self._committed(), model)
            if not self._counts()[RowState.PENDING]:
                return Ending.FINISHED
        if self._is_stopped():
            return Ending.CANCELLED
        lanes.start()
        with FanOut(lanes.actors, at_once=lanes.at_once) as way:
            course = Course(
                self._table,
                LaneWatch(lanes.actors, silence_s=self._limits.lane_silence_s),
                way,
                self._reports,
                model=model,
                at_once=lanes.at_once,
                limits=self._limits,
                tally=self._tally,
            )
            ending = course.run(
                is_stopped=self._is_stopped,
                on_look=lambda: self._look(course),
                more=lambda: self._more(incoming, model),
            )
        return ending if incoming is None else self._watch_ended(incoming, ending)

    def _watch_ended(self, incoming: Incoming, ending: Ending) -> Ending:
        """Tells what never became whole; being stopped is how a watch ends, when nothing waits any more."""
        for row in incoming.left():
            self._reject(row)
        is_done = ending is Ending.CANCELLED and not self._counts()[RowState.PENDING] and not incoming.known()
        return Ending.FINISHED if is_done else ending

    def _incoming(self) -> Incoming | None:
        if not self._job.watches:
            return None
        return Incoming(watch_manifest(self._job.source), every_s=self._limits.watch_every_s)

    def _read(self) -> Iterator[Entry | BadRow]:
        """Yields the rows of the manifest, up to where the run is to stop; a million take their time."""
        for row in read_manifest(self._job.source):
            if self._is_stopped():
                return
            if self._is_time_to_tell():
                self._reports.progress(self._state("checking"))
            yield row

    def _take(self, rows: Iterable[Entry | BadRow]) -> None:
        """Checks rows and puts the good ones into the table."""
        checked = check_all(rows, self._checker, num_threads=self._limits.check_threads)
        fill(self._table, checked, self._plan, on_bad=self._reject)

    def _reject(self, row: BadRow) -> None:
        self._tally.count_bad(row.error)
        self._reports.failed(row)

    def _more(self, incoming: Incoming | None, model: str) -> bool:
        """Takes some of what is new in a folder that is watched."""
        if incoming is None:
            return False
        rows = incoming.some()
        self._take(rows)
        try:
            self._skip_made(dict.fromkeys(row.custom_id for row in rows), model)
        except StorageError as error:  # lanes look for results themselves
            log.warning("results not looked for", extra={"folder": self._output.uri(), "error": str(error)})
        return True

    def _committed(self) -> Iterator[str]:
        """Yields the ids of what earlier runs made, up to where the run is to stop; many take their time."""
        for custom_id in committed(self._output):
            if self._is_stopped():
                return
            self._look(None)
            yield custom_id

    def _skip_made(self, custom_ids: Iterable[str], model: str) -> None:
        """Ends those of the rows that an earlier run made."""

        def look(row: TableRow) -> tuple[TableRow, Document | None]:
            return row, self._made_before(row, model)

        found = (self._table.find_pending(custom_id) for custom_id in custom_ids)
        rows = (row for row in found if row is not None)
        for row, result in in_order(look, rows, num_threads=self._limits.check_threads):
            if result is not None:
                self._table.end(row.seq, RowState.SKIPPED)
                self._reports.done(result)

    def _made_before(self, row: TableRow, model: str) -> Document | None:
        """Returns the result of a row if it has the very key that the row has now; on any thread."""
        result = read_result(self._output, row.custom_id)
        if result is None or result["row_key"] != row_key(row.body_key, model=model):
            return None
        return result if self._is_archived(row) else None

    def _is_archived(self, row: TableRow) -> bool:
        """Sees to it that a video that is done is in the archive too; False: its lane shall tell why it cannot be."""
        output = RowOutput(self._output, row.custom_id, self._spool)
        if row.archive_name is None or output.is_archived(row.archive_name):
            return True
        try:
            output.archive(row.archive_name)
        except OutputError:
            return False
        return True

    def _is_stopped(self) -> bool:
        if self._lost:
            return True
        now = time.monotonic()
        if now - self._asked_at > self._limits.progress_every_s:
            self._asked_at = now
            self._is_cancelled = self._is_cancelled or self._lock.is_cancelled()
        return self._is_cancelled or self._is_asked_to_stop()

    def _lose(self, why: str) -> None:
        self._lost = why
        self._reports.let_go()

    def _is_time_to_tell(self) -> bool:
        now = time.monotonic()
        is_time = now - self._told_at >= self._limits.progress_every_s
        if is_time:
            self._told_at = now
        return is_time

    def _look(self, course: Course | None) -> None:
        """Tells how far the run is, in its rhythm."""
        if not self._is_time_to_tell():
            return
        state = self._state("checking" if course is None else "running", course)
        self._listener.progress(state)
        self._metrics.show(state)
        self._reports.progress(state)
        if self._told_at - self._synced_at > self._limits.sync_every_s:
            self._synced_at = self._told_at
            self._reports.sync()

    def _counts(self) -> dict[RowState, int]:
        return self._table.counts()

    def _state(self, name: str, course: Course | None = None) -> dict[str, Any]:
        counts = self._counts()
        rest_s = None if course is None else course.rest_s()
        return {
            "run_id": self._run_id,
            "state": name,
            "updated_at": round(time.time(), 3),
            "rows": {
                "total": self._plan.num_rows,
                "done": counts[RowState.DONE],
                "skipped": counts[RowState.SKIPPED],
                "failed": counts[RowState.FAILED] + self._plan.num_bad,
                "running": counts[RowState.RUNNING],
                "waiting": counts[RowState.PENDING],
            },
            "rest_s": None if rest_s is None else round(rest_s, 1),
            "lanes": [] if course is None else [_shown(status) for status in course.statuses.values()],
            **self._tally.as_json(),
        }

    def _ended(self, code: ExitCode) -> tuple[ExitCode, Document]:
        if self._lost:
            raise AvatarError(self._lost, remedy="see which job writes there; this one has stopped and left it alone")
        counts = self._counts()
        rest = counts[RowState.PENDING] + counts[RowState.RUNNING]
        is_all_good = code is ExitCode.PARTIAL and not rest and not counts[RowState.FAILED] + self._plan.num_bad
        code = ExitCode.ALL_GOOD if is_all_good else code
        summary = {**self._state(code.name.lower()), "exit_code": int(code)}
        self._reports.step("run ended", {"exit_code": int(code)})
        self._reports.progress(summary)
        self._reports.summary(summary)
        self._metrics.show(summary)
        return code, summary


_EXIT = {
    Ending.FINISHED: ExitCode.PARTIAL,
    Ending.CANCELLED: ExitCode.CANCELLED,
    Ending.BROKEN: ExitCode.BROKEN,
}
"""FINISHED is all good when no row failed: `_ended` looks."""


def _shown(status: Any) -> Document:  # noqa: ANN401
    told = {name: value for name, value in vars(status).items() if name != "asked_at"}
    return {**told, "condition": str(status.condition), "orders": len(status.orders)}
