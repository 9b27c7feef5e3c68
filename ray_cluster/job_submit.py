"""Jobs of a Ray cluster, over its dashboard: submit, follow, wait. Needs Ray with its dashboard's packages."""

from __future__ import annotations

import codecs
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

from ray_cluster.job import (
    HeadUnreachableError,
    JobError,
    JobLogError,
    JobSpec,
    JobState,
    JobUnknownError,
)
from ray_cluster.job_client import DashboardClient, JobTimeouts, dashboard_address

IsCancelled = Callable[[], bool]
OnNote = Callable[[str], None]
POLL_S = 0.5
CHECK_EVERY_S = 1.0


def connect(
    address: str,
    *,
    headers: Mapping[str, str] = MappingProxyType({}),
    verify: bool | str = True,
    timeouts: JobTimeouts = JobTimeouts(),  # noqa: B008  (frozen)
) -> JobCluster:
    """Returns the cluster whose dashboard is at `address`; raises JobError where there is none that takes jobs.

    Ray's own settings (RAY_AUTH_MODE, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH) decide about the token, unless `headers`,
    which go along with every request, have an Authorization. `verify`: whether the certificate of an https address
    is checked, or the file or folder of those that are trusted.
    """
    client = DashboardClient(dashboard_address(address), headers=headers, verify=verify, timeouts=timeouts)
    client.check_version()
    return JobCluster(client)


@dataclass(frozen=True)
class JobCluster:
    """A cluster that takes jobs."""

    client: DashboardClient

    def find(self, submission_id: str) -> Job | None:
        """Returns the job of that id, if the cluster has it."""
        job = Job(submission_id, self.client)
        try:
            job.state()
        except JobUnknownError:
            return None
        return job

    def submit(self, spec: JobSpec) -> Job:
        """Hands a job to the cluster; raises JobError. Where the answer is lost, what the cluster knows decides.

        So of two that submit the same id at the same time both get the job of the first.
        """
        job = Job(spec.submission_id, self.client)
        try:
            self.client.submit(spec)
        except JobError as error:
            if self._has(job):
                return job
            if isinstance(error, HeadUnreachableError):
                raise _unknown(job, error) from error
            raise
        return job

    def _has(self, job: Job) -> bool:
        with suppress(JobError):
            job.state()
            return True
        return False


@dataclass(frozen=True)
class Job:
    """A job that the cluster knows; as many may follow it as like to."""

    submission_id: str
    client: DashboardClient

    def state(self) -> JobState:
        """Returns how the job stands now; raises JobError."""
        return self.client.state(self.submission_id)

    def follow(self, *, is_cancelled: IsCancelled, on_note: OnNote) -> Iterator[str]:
        """Yields what the job prints, from the first line to its end, in pieces as they come, each once.

        Bytes that are no UTF-8 come as escapes. A head that is away is waited for, and `on_note` is told. Ends early
        when cancelled. Raises JobLogError where the log cannot be read, and JobError as `wait` does.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        for chunk in self._chunks(is_cancelled, on_note):
            if text := decoder.decode(chunk):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def wait(self, *, is_cancelled: IsCancelled, on_note: OnNote) -> JobState:
        """Returns how the job ended, or how it stands when the waiting is cancelled.

        Raises HeadUnreachableError where the head is away for too long, or when cancelled; JobUnknownError if it has
        forgotten the job.
        """
        limits = self.client.timeouts
        away = _Patience(limits.away_s, limits.tell_after_s, on_note)
        while True:
            try:
                state = self.state()
                if state.is_ended or is_cancelled():
                    return state
                away.forget()
            except HeadUnreachableError as error:
                if is_cancelled():
                    raise
                away.bear(error, remedy=self._goes_on())
            time.sleep(POLL_S)

    def _chunks(self, is_cancelled: IsCancelled, on_note: OnNote) -> Iterator[bytes]:
        """Yields the log over as many connections as it takes: Ray itself ends each after some minutes.

        Each starts with the first byte of the log, so it is known how much of it was there before.
        """
        position, limits = 0, self.client.timeouts
        head, log, place = (
            _Patience(limit_s, limits.tell_after_s, on_note) for limit_s in (limits.away_s, limits.log_s, math.inf)
        )
        while not is_cancelled():
            try:
                state = self.state()
                head.forget()
                for chunk in self._beyond(position, state, is_cancelled):
                    log.forget()
                    position += len(chunk)
                    yield chunk
                if state.is_ended:
                    return
                if not state.node_id:
                    place.bear(JobError(state.message, remedy=""), remedy="")
            except HeadUnreachableError as error:
                head.bear(error, remedy=self._goes_on())
            except JobLogError as error:
                log.bear(error, remedy=self._goes_on())
            time.sleep(POLL_S)

    def _beyond(self, position: int, state: JobState, is_cancelled: IsCancelled) -> Iterator[bytes]:
        """Yields what one connection brings of the log after its first `position` bytes; b"" for a while without news.

        It is left when the job has ended: the log of an ended job is read as a file, whose end is known.
        """
        if not state.node_id:  # no place yet, or ended without one: nothing was written
            return
        is_followed, checked = not state.is_ended, time.monotonic()
        with self.client.log(self.submission_id, state.node_id, is_followed=is_followed) as log:
            while not (is_cancelled() or log.has_ended):
                chunk = log.read(POLL_S)
                if len(chunk) > position or (is_followed and not chunk):
                    yield chunk[position:]
                position = max(0, position - len(chunk))
                if is_followed and time.monotonic() > checked + CHECK_EVERY_S:
                    checked = time.monotonic()
                    if self.state().is_ended:
                        return

    def _goes_on(self) -> str:
        address = self.client.get_address()
        return f"the job goes on if its cluster does: ray job logs --follow {self.submission_id} --address {address}"


def _unknown(job: Job, error: HeadUnreachableError) -> HeadUnreachableError:
    address = job.client.get_address()
    return HeadUnreachableError(
        f"{error.message}; whether job {job.submission_id} is there is not known",
        remedy=f"look: ray job status {job.submission_id} --address {address}; the same id again makes no second one",
    )


class _Patience:
    """Bears what fails, until it has failed for `limit_s` on end; `on_note` is told after `tell_after_s`."""

    def __init__(self, limit_s: float, tell_after_s: float, on_note: OnNote) -> None:
        self._limit_s = limit_s
        self._tell_after_s = tell_after_s
        self._on_note = on_note
        self._since: float | None = None
        self._is_told = False

    def forget(self) -> None:
        """Something went well."""
        self._since, self._is_told = None, False

    def bear(self, error: JobError, *, remedy: str) -> None:
        """Something failed; raises the error, with its remedy, when that has gone on for too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since > self._limit_s:
            raise type(error)(f"{error.message}, for {now - self._since:.0f} s now", remedy=remedy) from error
        if now - self._since > self._tell_after_s and not self._is_told:
            self._is_told = True
            until = "" if math.isinf(self._limit_s) else f"; trying on for {self._limit_s:g} s"
            self._on_note(f"{error.message}{until}")
