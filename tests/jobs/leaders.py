"""Leaders that work when told to, and a service of them around a real store: whatever can be lost, can be lost here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app.errors import UnavailableError
from serve_app.jobs.data_disk import DataDisk
from serve_app.jobs.dispatching import Dispatching
from serve_app.jobs.fleet import Fleet
from serve_app.jobs.job import Job, JobError, Priority
from serve_app.jobs.messages import Answer, End, Ending, GroupCondition, GroupReport, Order, Run
from serve_app.jobs.quote import Rejected
from serve_app.jobs.store import JobReader, JobStore
from serve_app.jobs.submission import Submission
from serve_app.metrics import NoMetrics
from serve_app.planning.calibration import load_calibration
from serve_app.planning.geometry import Size
from serve_app.planning.workload import Workload
from serve_app.schemas.service import PoolConfig, QueueLimits, ServiceTimes
from tests.jobs.world import Clock

GIB = 2**30
POOL = PoolConfig(name="tiny", model="live-avatar-tiny")
TIMES = ServiceTimes()
BLOCKS = 4
WORK = Workload(Size(128, 128), num_frames=BLOCKS * 12, speech_seconds=2.0)


@dataclass
class Shelf:
    """Videos in memory: what was committed by which attempt, and what was removed."""

    committed: set[tuple[str, int]] = field(default_factory=set)

    def is_committed(self, job_id: str, *, attempt: int) -> bool:
        return (job_id, attempt) in self.committed

    def location(self, job_id: str, attempt: int) -> str:
        return f"{job_id}/{attempt}"

    def end(self, job_id: str) -> None:
        """Pieces are not kept here."""

    def delete(self, job_id: str) -> None:
        self.committed = {one for one in self.committed if one[0] != job_id}


@dataclass(frozen=True)
class Usage:
    total: int = 100 * GIB
    free: int = 90 * GIB


@dataclass
class Service:
    """The Dispatcher's core over a file, restarted at will."""

    path: Path
    clock: Clock = field(default_factory=Clock)
    shelf: Shelf = field(default_factory=Shelf)
    usage: Usage = field(default_factory=Usage)
    pools: tuple[PoolConfig, ...] = (POOL,)
    limits: QueueLimits = field(default_factory=QueueLimits)

    def __post_init__(self) -> None:
        self.reader = JobReader.open(self.path)
        self.restart()

    def restart(self) -> None:
        """Another Dispatcher takes over; the old one is gone without a word."""
        fleet = Fleet(self.pools, calibration=load_calibration(), cpu_bytes=16 * GIB)
        self.dispatching = Dispatching(
            JobStore.take_over(self.path, wall_clock=self.clock),
            fleet,
            DataDisk(self.path.parent, fleet.disk_bytes, usage=lambda _: self.usage),
            self.shelf,
            limits=self.limits,
            times=TIMES,
            clock=self.clock,
            wall_clock=self.clock,
            metrics=NoMetrics(),
        )

    def submit(self, priority: Priority = Priority.STANDARD, **changes: object) -> Job | Rejected:
        return self.dispatching.submit(wanted(priority=priority, **changes))

    def accept(self, **changes: object) -> Job:
        job = self.submit(**changes)  # type: ignore[arg-type]
        assert isinstance(job, Job), job
        return job

    def job(self, job_id: str) -> Job:
        return self.reader.get(job_id)

    def silence(self, seconds: float, *, heard: Iterable[FakeLeader] = ()) -> None:
        """Lets time pass, tick by tick, in which only some leaders report."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now = min(until, self.clock.now + 1.0)
            for leader in heard:
                leader.report()
            self.dispatching.tick()

    def groups(self) -> list[Any]:
        """Returns what is told of all groups."""
        return [group for pool in self.dispatching.capacity()["pools"] for group in pool["groups"]]


def wanted(**changes: object) -> Submission:
    asked: dict[str, object] = {
        "model": POOL.model,
        "spec": {"image": "file_i", "audio": "file_a", "prompt": "A woman talks."},
        "work": WORK,
        "priority": Priority.STANDARD,
    }
    return Submission(**{**asked, **changes})  # type: ignore[arg-type]


@dataclass
class FakeLeader:
    """What `deployments.leader` does, one step at a time."""

    service: Service
    name: str
    pool: str = POOL.name
    condition: GroupCondition = GroupCondition.READY
    order: Order | None = None
    blocks_done: int = 0
    end: End | None = None
    is_stopped: bool = False
    inference_s: float = 2.0
    facts: dict[str, Any] = field(default_factory=dict)
    commits: list[tuple[str, int]] = field(default_factory=list)

    def told(self) -> GroupReport:
        run = None
        if self.order is not None:
            run = Run(self.order.job_id, self.order.attempt, self.blocks_done, BLOCKS, 0.5)
        return GroupReport(self.name, self.pool, self.condition, run=run, end=self.end, facts=self.facts)

    def report(self, *, is_answer_lost: bool = False) -> Answer | None:
        """Reports once; the answer may get lost on its way."""
        try:
            answer = self.service.dispatching.report(self.told())
        except UnavailableError:
            return None
        if is_answer_lost:
            return None
        if answer.is_end_taken is not None and self.end is not None:
            if not answer.is_end_taken:
                self.service.shelf.committed.discard((self.end.job_id, self.end.attempt))
            self.end = None
        self.is_stopped = self.is_stopped or (answer.stops and self.order is not None)
        is_free = self.order is None and self.end is None and self.condition is not GroupCondition.DRAINING
        if answer.order is not None and is_free:
            self.order, self.blocks_done, self.is_stopped = answer.order, 0, False
        return answer

    def work(self) -> None:
        """Makes one block, commits after the last one, or stops at the border."""
        if self.order is None:
            return
        if self.is_stopped:
            self._ended(Ending.CANCELLED)
            return
        self.blocks_done += 1
        if self.blocks_done == BLOCKS:
            self.commits.append((self.order.job_id, self.order.attempt))
            self.service.shelf.committed.add((self.order.job_id, self.order.attempt))
            self._ended(Ending.COMPLETED)

    def fail(self, *, code: str = "render_failed") -> None:
        self._ended(Ending.FAILED, error=JobError(code, "it did not work"))

    def lose_ranks(self) -> None:
        if self.condition is not GroupCondition.DRAINING:
            self.condition = GroupCondition.STARTING
        self._ended(Ending.LOST, error=JobError("gang_failed", "rank 1 died"), is_to_blame=True)

    def _ended(self, ending: Ending, *, error: JobError | None = None, is_to_blame: bool = False) -> None:
        assert self.order is not None
        self.end = End(
            self.order.job_id,
            self.order.attempt,
            ending,
            location=self.service.shelf.location(self.order.job_id, self.order.attempt),
            result={"inference_time_s": self.inference_s},
            error=error,
            is_to_blame=is_to_blame,
        )
        self.order, self.is_stopped = None, False
