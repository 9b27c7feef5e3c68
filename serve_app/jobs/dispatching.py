"""Dispatching: the one owner of queue, promises and groups, between the API's requests and the leaders' reports.

Everything here happens on one thread, one thing after the other, and every change is in the job store when its method
returns. After an error of the store nothing is known for certain: whoever owns this ends its process, and the next
one builds on the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from serve_app.errors import UnavailableError
from serve_app.jobs import capacity
from serve_app.jobs.acceptance import new_job
from serve_app.jobs.admission import Admission
from serve_app.jobs.data_disk import DataDisk
from serve_app.jobs.fleet import Fleet
from serve_app.jobs.job import Document, Job, JobError, JobState, new_job_id
from serve_app.jobs.ledger import Ledger, LedgerLimits
from serve_app.jobs.messages import Answer, End, Ending, GroupCondition, GroupReport, Order, Run
from serve_app.jobs.quote import Margin, Outcome, Place, Rejected
from serve_app.jobs.recovery import restore
from serve_app.jobs.roll import Roll
from serve_app.jobs.store import BlockReport, JobStore
from serve_app.jobs.submission import Submission
from serve_app.metrics import Metric, Metrics
from serve_app.schemas.service import QueueLimits, ServiceTimes

log = logging.getLogger(__name__)

_START_GUESS_S = 60.0
"""How long a group that starts is taken to need, and so much again whenever that was too little."""
_LOST = JobError("group_lost", "the group that made the video was lost, and so were those of earlier attempts")
_LEAVING = (GroupCondition.DRAINING, GroupCondition.GONE)
_PACE_JOBS = 50


class Videos(Protocol):
    """What is asked of the storage of videos."""

    def is_committed(self, job_id: str, *, attempt: int) -> bool: ...

    def location(self, job_id: str, attempt: int) -> object: ...

    def end(self, job_id: str) -> None: ...

    def delete(self, job_id: str) -> None: ...


class Dispatching:
    """Takes requests and reports, and says what each group does next.

    `clock` only goes forward, `wall_clock` gives the times that are stored. `on_order` is told the name of a group
    that has something to do.
    """

    def __init__(
        self,
        store: JobStore,
        fleet: Fleet,
        disk: DataDisk,
        videos: Videos,
        *,
        limits: QueueLimits,
        times: ServiceTimes,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        metrics: Metrics,
        on_order: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store, self._fleet, self._disk, self._videos = store, fleet, disk, videos
        self._times, self._clock, self._wall_clock = times, clock, wall_clock
        self._metrics, self._on_order = metrics, on_order
        margin = Margin(ratio=limits.margin_ratio, per_job_s=limits.margin_s)
        self._ledger = Ledger(
            clock, LedgerLimits(margin=margin, bulk_floor=limits.bulk_floor, max_waiting=limits.max_waiting)
        )
        self._admission = Admission(self._ledger, fleet, disk)
        self._roll = Roll(clock, times.lost_after_s)
        self._orders: dict[str, Order] = {}
        self._stops: set[tuple[str, int]] = set()
        self._unheard: set[str] = set()
        """Jobs that ran when this began, and of which no leader has told yet: until then nothing is admitted."""
        self._recover()

    def plan(self, wanted: Submission) -> Outcome:
        """Answers what `submit` would, and takes nothing; raises UnavailableError just after a restart."""
        self._check_is_open()
        return self._admission.plan(wanted, priority=wanted.priority, deadline_s=wanted.deadline_s)

    def submit(self, wanted: Submission) -> Job | Rejected:
        """Stores the job when it is admitted; a request that came before gets the job that it made then.

        Raises IdempotencyConflictError, InvalidRequestError and, just after a restart, UnavailableError.
        """
        self._check_is_open()
        same = None if wanted.key is None else self._store.find_same(wanted.key)
        if same is not None:
            return same
        job_id = new_job_id()
        outcome = self._admission.admit(job_id, wanted, priority=wanted.priority, deadline_s=wanted.deadline_s)
        if isinstance(outcome, Rejected):
            self._metrics.count(Metric.ADMISSIONS, decision=outcome.reason.value)
            return outcome
        try:
            new = new_job(wanted, outcome.quote, fleet=self._fleet, wall_now=self._wall_clock())
            job = self._store.add(new, job_id=job_id, key=wanted.key)
        except BaseException:
            self._ledger.cancel(job_id)
            raise
        self._disk.hold(job_id, job.quote["disk_bytes"])
        self._metrics.count(Metric.ADMISSIONS, decision="admitted")
        self._start_idle()
        return self._store.get(job.id)

    def cancel(self, job_id: str) -> Job:
        """Cancels a waiting job; a running one is stopped with its leader's next report.

        Raises JobNotFoundError, and IllegalTransitionError for a job that has ended.
        """
        job = self._store.request_cancel(job_id)
        if job.state is JobState.CANCELLED:
            self._ledger.cancel(job_id)
            self._ended(job)
        else:
            self._stops.add((job_id, job.attempt))
            if job.group is not None:
                self._on_order(job.group)
        return job

    def delete(self, job_id: str) -> Job:
        """Removes an ended job and its video; raises JobNotFoundError, IllegalTransitionError for one that goes on."""
        job = self._store.delete(job_id)
        self._videos.delete(job_id)
        return job

    def place(self, job_id: str) -> Place | None:
        """Returns where a job stands that waits; None for one that does not."""
        return self._ledger.place(job_id)

    def report(self, told: GroupReport) -> Answer:
        """Takes what a leader says and answers what it shall do."""
        is_end_taken = None if told.end is None else self._take_end(told, told.end)
        self._take_back(told)
        self._follow(told)
        is_wanted = told.run is None or self._is_wanted(told, told.run)
        if told.condition is GroupCondition.READY and told.run is None and told.end is None:
            self._order_again(told)
        self._note(told)
        self._start_idle()
        return self._answer(told, stops=not is_wanted, is_end_taken=is_end_taken)

    def answer_again(self, group: str) -> Answer:
        """Returns what a group shall do now that has reported a moment ago."""
        told = self._roll.find(group)
        if told is None:  # it was lost in between: its next report is that of a new group
            return Answer()
        return self._answer(told, stops=told.run is not None and not self._is_wanted(told, told.run), is_end_taken=None)

    def tick(self) -> None:
        """Does what only time brings; call it about once a second."""
        for group in self._roll.tick():
            self._lose_group(group)
        if self._is_grace_over:
            self._give_up_unheard()
        for job_id in self._ledger.take_expired():
            self._expire(job_id)
        self._start_idle()
        capacity.show(self._fleet, self._ledger, self._roll.reports(), self._metrics)

    def close(self) -> None:
        """Takes and starts nothing from now on."""
        self._ledger.close()

    def capacity(self) -> Document:
        """Returns pools, groups and queue."""
        is_admitting = self._is_open and not self._ledger.is_closed
        return capacity.capacity(self._fleet, self._ledger, self._roll.reports(), is_admitting=is_admitting)

    @property
    def _is_grace_over(self) -> bool:
        return self._roll.listened_s >= self._times.grace_s

    @property
    def _is_open(self) -> bool:
        """Whether enough was heard, since this began, to say what can be promised."""
        return not self._unheard and (self._is_grace_over or not self._roll.is_empty)

    def _check_is_open(self) -> None:
        if not self._is_open:
            raise UnavailableError(
                "the Dispatcher has just restarted and hears first what runs", remedy="try again in some seconds"
            )

    def _recover(self) -> None:
        """Builds the ledger from the store; when jobs ran, waits for their leaders before anything else."""
        unfinished = self._store.unfinished()
        self._unheard = {job.id for job in unfinished if job.state is JobState.RUNNING}
        self._stops = {(job.id, job.attempt) for job in unfinished if job.is_cancel_requested}
        for job in unfinished:
            self._disk.hold(job.id, job.quote["disk_bytes"])
            self._wait(job)
        for job in reversed(self._store.page(limit=_PACE_JOBS, state=JobState.COMPLETED).jobs):
            self._learn(job)
        log.info("dispatcher started", extra={"epoch": self._store.epoch, "unfinished": len(unfinished)})

    def _wait(self, job: Job) -> None:
        """Lets a stored job wait for a group; a job whose pool is configured no more would wait for ever."""
        if job.state is JobState.QUEUED and job.layout not in self._fleet.pools:
            error = JobError("pool_removed", f"pool {job.layout}, which was to make the video, is configured no more")
            self._ended(self._store.fail(job.id, error=error))
        else:
            restore(self._ledger, [job], wall_now=self._wall_clock())

    def _note(self, told: GroupReport) -> None:
        """Takes a report as a sign of life; what could not be followed is none."""
        before = self._roll.find(told.group)
        if before is not None and told.num_restarts > before.num_restarts:
            self._metrics.count(Metric.GROUP_RESTARTS, pool=told.pool)
        self._roll.note(told)
        self._fleet.see(self._roll.reports())

    def _give_up_unheard(self) -> None:
        """Settles the attempts that no leader reported in time."""
        unheard, self._unheard = self._unheard, set()
        for job_id in unheard:
            self._ledger.cancel(job_id)
            self._settle_lost(self._store.get(job_id))

    def _follow(self, told: GroupReport) -> None:
        """Brings the ledger's view of a group up to what its leader says."""
        name, known = told.group, self._ledger.groups.get(told.group)
        match told.condition:
            case GroupCondition.FAILED | GroupCondition.GONE:
                self._lose_group(name)
            case GroupCondition.DRAINING:
                if known is None:
                    self._ledger.add_group(name, layout=told.pool)
                self._ledger.drain_group(name)
            case GroupCondition.STARTING:
                is_late = known is not None and known.free_at <= self._clock()
                if known is None or (known.running is None and (known.is_ready or is_late)):
                    self._ledger.add_group(name, layout=told.pool, ready_in_s=_START_GUESS_S)
            case GroupCondition.READY | GroupCondition.BUSY:
                if known is None or not known.is_ready:
                    self._ledger.add_group(name, layout=told.pool)

    def _is_wanted(self, told: GroupReport, run: Run) -> bool:
        """Notes how far an attempt is; says whether it shall go on."""
        order = self._orders.get(told.group)
        is_known = order is not None and (order.job_id, order.attempt) == (run.job_id, run.attempt)
        if not is_known and not self._adopt(told, run):
            return False
        if (run.job_id, run.attempt) in self._stops:
            return False
        if run.num_blocks > 0:
            self._store.report([BlockReport(run.job_id, run.attempt, run.blocks_done, run.num_blocks)])
            if run.block_seconds > 0:
                blocks_left = run.num_blocks - run.blocks_done
                self._ledger.progress(run.job_id, blocks_left=blocks_left, block_seconds=run.block_seconds)
        return True

    def _adopt(self, told: GroupReport, run: Run) -> bool:
        """Takes an attempt that was started before this Dispatcher was; says False of one that was given up."""
        job = self._store.find(run.job_id)
        if job is None or (job.state, job.attempt, job.group) != (JobState.RUNNING, run.attempt, told.group):
            return False
        if told.group not in self._ledger.groups or self._ledger.place(run.job_id) is None:
            return False
        self._ledger.adopt(run.job_id, group=told.group)
        self._unheard.discard(run.job_id)
        self._orders[told.group] = _order(job)
        return True

    def _order_again(self, told: GroupReport) -> None:
        """Adopts an attempt that was ordered just before a restart, and of which an idle leader has not heard."""
        for job in map(self._store.get, tuple(self._unheard)):
            if job.group == told.group:
                self._adopt(told, Run(job.id, job.attempt, 0, 0))

    def _take_end(self, told: GroupReport, end: End) -> bool:
        """Stores how an attempt ended; says False when it had been given up. The same end may be told twice."""
        job = self._store.find(end.job_id)
        if job is None or job.attempt != end.attempt:
            return False
        if job.state is not JobState.RUNNING:
            return end.ending is not Ending.COMPLETED or job.location == end.location
        self._orders.pop(told.group, None)
        self._unheard.discard(job.id)
        is_stopped_unasked = end.ending is Ending.CANCELLED and not job.is_cancel_requested
        if end.ending is Ending.LOST or is_stopped_unasked:
            self._forget_run(told.group, job.id)
            self._requeue(job, cause=end.error or _LOST, is_to_blame=end.is_to_blame)
            return True
        ended = self._store_end(job, end)
        self._forget_run(told.group, job.id)
        self._ended(ended)
        return True

    def _store_end(self, job: Job, end: End) -> Job:
        match end.ending:
            case Ending.COMPLETED:
                return self._store.complete(job.id, attempt=end.attempt, location=end.location, result=end.result)
            case Ending.CANCELLED:
                return self._store.cancel(job.id, attempt=end.attempt)
            case _:
                error = end.error or JobError("render_failed", "the render failed without a word")
                return self._store.fail(job.id, attempt=end.attempt, error=error)

    def _forget_run(self, group: str, job_id: str) -> None:
        """Notes that a group is idle; a job that was not adopted yet waits in the ledger, and does so no more."""
        known = self._ledger.groups.get(group)
        if known is not None and known.running is not None and known.running.job_id == job_id:
            self._ledger.release(job_id)
        else:
            self._ledger.cancel(job_id)

    def _take_back(self, told: GroupReport) -> None:
        """Lets a job wait again whose order came too late: a group that drains, and has not begun it, never will."""
        order = self._orders.get(told.group)
        if order is None or told.run is not None or told.condition not in _LEAVING:
            return
        del self._orders[told.group]
        self._ledger.release(order.job_id)
        self._stops.discard((order.job_id, order.attempt))
        after = self._store.hand_back(order.job_id, attempt=order.attempt)
        if after.state is JobState.QUEUED:
            self._wait(after)
        else:
            self._ended(after)

    def _lose_group(self, name: str) -> None:
        """Plans on a group no more whose leader is gone or has given up, and settles what it was working on."""
        self._orders.pop(name, None)
        if name not in self._ledger.groups:
            return
        log.warning("group lost", extra={"group": name})
        booking = self._ledger.lose_group(name)
        if booking is not None:
            self._settle_lost(self._store.get(booking.job_id))

    def _settle_lost(self, job: Job) -> None:
        """Completes a lost attempt whose video had been committed; else gives the job another attempt."""
        if self._videos.is_committed(job.id, attempt=job.attempt):
            location = str(self._videos.location(job.id, job.attempt))
            self._ended(self._store.complete(job.id, attempt=job.attempt, location=location, result={}))
        else:
            self._requeue(job, cause=_LOST, is_to_blame=False)

    def _requeue(self, job: Job, *, cause: JobError, is_to_blame: bool) -> None:
        after = self._store.lose_group(job.id, attempt=job.attempt, cause=cause, has_brought_down=is_to_blame)
        self._stops.discard((job.id, job.attempt))
        if after.state is JobState.QUEUED:
            self._wait(after)
        else:
            self._ended(after)

    def _start_idle(self) -> None:
        """Gives idle groups their next job."""
        if self._unheard:
            return
        for group, booking in self._ledger.start_idle().items():
            job = self._store.start(booking.job_id, group=group)
            self._orders[group] = _order(job)
            waited_s = self._wall_clock() - job.created_at
            self._metrics.observe(Metric.WAIT_SECONDS, waited_s, pool=job.layout)
            self._on_order(group)

    def _answer(self, told: GroupReport, *, stops: bool, is_end_taken: bool | None) -> Answer:
        waiting = self._ledger.num_waiting_for(told.pool)
        order = self._orders.get(told.group) if told.run is None else None
        return Answer(order=order, stops=stops, is_end_taken=is_end_taken, num_waiting=waiting)

    def _expire(self, job_id: str) -> None:
        job = self._store.find(job_id)
        if job is None or job.state is not JobState.QUEUED:  # it was cancelled since the ledger dropped it
            return
        error = JobError("deadline_passed", "the deadline passed before a group was free")
        self._ended(self._store.fail(job_id, error=error))

    def _ended(self, job: Job) -> None:
        self._stops.discard((job.id, job.attempt))
        self._disk.free(job.id)
        self._videos.end(job.id)
        if job.state is JobState.COMPLETED:
            self._learn(job)
        self._metrics.count(Metric.JOBS_ENDED, state=job.state.value)
        log.info("job ended", extra={"job": job.id, "state": job.state.value, "attempt": job.attempt})

    def _learn(self, job: Job) -> None:
        seconds, predicted_s = job.result.get("inference_time_s"), job.quote.get("predicted_s")
        if seconds and predicted_s and job.layout in self._fleet.pools:
            self._fleet.pace.learn(job.layout, seconds=seconds, predicted_s=predicted_s)


def _order(job: Job) -> Order:
    return Order(job.id, job.attempt, job.spec)
