"""The leader beside the real Dispatching: blocks in, reports out; frames are drawn, not computed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from ray_cluster.errors import FailureKind, RankFailedError
from ray_cluster.program import StartReport
from ray_cluster.replica_group import GroupState
from serve_app.deployments import leader
from serve_app.deployments.leader import Leader, Workshop
from serve_app.errors import CheckpointError, GangFailedError, RenderCancelledError
from serve_app.jobs.job import Job, JobState
from serve_app.jobs.messages import Answer, GroupCondition, GroupReport
from serve_app.metrics import NoMetrics
from serve_app.planning.geometry import STARTUP_FRAMES
from serve_app.rendering.frames import IsCancelled
from serve_app.schemas.config import AppConfig
from serve_app.schemas.service import ServiceTimes
from serve_app.storage.videos import VideoFiles
from serve_app.task import FrameBlock, RenderTask
from tests.jobs.leaders import Service

SAMPLES = Path(__file__).parents[2] / "serve_app" / "samples"
TIMES = ServiceTimes(report_every_s=0.1, call_s=5)
PATIENCE_S = 20.0
NUM_BLOCKS = 4
PEAK_BYTES = 300 * 2**20


@dataclass(frozen=True)
class StubGang:
    reports: tuple[StartReport, ...]


@dataclass
class StubGroup:
    name: str = "g0"
    state: GroupState = GroupState.READY
    num_restarts: int = 0
    last_reason: str = ""
    gang: StubGang | None = None


@dataclass
class SteppedSource:
    """Yields a block for every permit; `error` is raised instead of the block `broken_at`."""

    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    broken_at: int | None = None
    error: Exception | None = None

    def frames(self, task: RenderTask, *, is_cancelled: IsCancelled) -> Iterator[FrameBlock]:
        for index in range(task.timeline.num_blocks):
            while not self.permits.acquire(timeout=0.01):
                if is_cancelled():
                    raise RenderCancelledError("stopped", remedy="start it again")
            if index == self.broken_at and self.error is not None:
                raise self.error
            frames = np.zeros((12 - STARTUP_FRAMES * (index == 0), task.size.height, task.size.width, 3), np.uint8)
            is_last = index == task.timeline.num_blocks - 1
            yield FrameBlock(index, frames, seconds=0.01, peak_bytes=PEAK_BYTES if is_last else None)


class Samples:
    def path_of(self, file_id: str) -> Path:
        return SAMPLES / {"file_i": "portrait.png", "file_a": "speech.wav"}[file_id]


@dataclass
class Stage:
    """A leader on a running loop, and the service that it reports to; answers may fail."""

    service: Service
    videos: VideoFiles
    source: SteppedSource = field(default_factory=SteppedSource)
    group: StubGroup = field(default_factory=StubGroup)
    is_deaf: bool = False
    told: list[GroupReport] = field(default_factory=list)

    async def ask(self, told: GroupReport) -> Answer:
        if self.is_deaf:
            raise ConnectionError("nobody there")
        self.told.append(told)
        answer = self.service.dispatching.report(told)
        await asyncio.sleep(0)
        return answer

    def leader(self) -> Leader:
        config = AppConfig()
        shop = Workshop(self.source, Samples(), self.videos, config, NoMetrics(), pool="tiny")
        return Leader(self.group, self.ask, shop, times=TIMES)

    def accept(self) -> Job:
        spec = {"image": "file_i", "audio": "file_a", "prompt": "A woman talks.", "size": "64x64", "num_clip": 1}
        return self.service.accept(spec=spec)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():
                await asyncio.sleep(0.01)

    async def state(self, job: Job, *wanted: JobState) -> Job:
        await self.until(lambda: self.service.job(job.id).state in wanted)
        return self.service.job(job.id)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(Service(tmp_path / "jobs.sqlite3"), VideoFiles(tmp_path))


def play(stage: Stage, story: Callable[[Leader], Awaitable[None]]) -> None:
    """Runs a story beside a reporting leader."""

    async def run() -> None:
        leader = stage.leader()
        reporting = asyncio.create_task(leader.report_for_ever())
        try:
            await story(leader)
        finally:
            reporting.cancel()
            stage.source.permits.release(1000)  # a story that fails is not to wait for its video

    asyncio.run(run())


def test_an_ordered_job_is_rendered_block_by_block_and_committed(stage: Stage) -> None:
    async def story(_: Leader) -> None:
        await stage.until(lambda: bool(stage.told))
        job = stage.accept()
        stage.source.permits.release()
        await stage.until(lambda: stage.service.job(job.id).blocks_done == 1)
        assert stage.videos.fragment(job.id, attempt=1, number=1)
        assert stage.videos.fragment(job.id, attempt=1, number=2) is None
        stage.source.permits.release(NUM_BLOCKS)
        done = await stage.state(job, JobState.COMPLETED)
        assert done.location == str(stage.videos.location(job.id, 1))
        assert (done.result["num_frames"], done.result["peak_memory_mb"]) == (48, 300.0)
        assert Path(done.location).stat().st_size > 1000

    play(stage, story)


def test_a_first_block_and_an_end_are_told_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(_: Leader) -> None:
        await stage.until(lambda: bool(stage.told))
        job = stage.accept()
        await stage.state(job, JobState.RUNNING)
        monkeypatch.setattr(leader, "_LEAST_BETWEEN_S", 10 * PATIENCE_S)
        stage.source.permits.release()
        await stage.until(lambda: stage.service.job(job.id).blocks_done == 1)
        stage.source.permits.release(NUM_BLOCKS)
        await stage.state(job, JobState.COMPLETED)

    play(stage, story)


def test_a_cancelled_job_stops_before_the_next_block_and_leaves_nothing(stage: Stage) -> None:
    async def story(leader: Leader) -> None:
        await stage.until(lambda: bool(stage.told))
        job = stage.accept()
        stage.source.permits.release()
        await stage.until(lambda: stage.service.job(job.id).blocks_done == 1)
        stage.service.dispatching.cancel(job.id)
        await stage.state(job, JobState.CANCELLED)
        await stage.until(lambda: not leader.is_busy)
        assert stage.videos.fragment(job.id, attempt=1, number=0) is None
        assert not stage.videos.is_committed(job.id, attempt=1)

    play(stage, story)


RANK_DIED = RankFailedError(FailureKind.DIED, rank=1, role="stage 1", detail="exit 9", remedy="look at its log")
RANK_FULL = RankFailedError(FailureKind.OUT_OF_MEMORY, rank=0, role="stage 0", detail="2 GiB", remedy="smaller")


def caused_by(cause: Exception) -> GangFailedError:
    error = GangFailedError(str(cause), remedy="start it again")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "attempts"),
    [
        (caused_by(RANK_DIED), "gang_failed", 2),
        (caused_by(RANK_FULL), "over_budget", 2),
        (CheckpointError("a tensor is missing", remedy="verify it"), CheckpointError.code, 1),
        (ZeroDivisionError("a bug"), "internal_error", 1),
    ],
)
def test_what_a_lost_group_ends_is_tried_once_more_and_an_error_is_told(
    stage: Stage, error: Exception, code: str, attempts: int
) -> None:
    stage.source = SteppedSource(broken_at=1, error=error)
    stage.source.permits.release(10 * NUM_BLOCKS)

    async def story(_: Leader) -> None:
        await stage.until(lambda: bool(stage.told))
        failed = await stage.state(stage.accept(), JobState.FAILED)
        assert failed.error is not None
        assert failed.error.code == code, failed.error
        assert failed.attempt == attempts
        assert "ZeroDivision" not in failed.error.message
        assert stage.service.accept().state is JobState.RUNNING

    play(stage, story)


def test_an_end_is_told_until_the_dispatcher_has_heard_it(stage: Stage) -> None:
    async def story(leader: Leader) -> None:
        await stage.until(lambda: bool(stage.told))
        job = stage.accept()
        await stage.until(lambda: leader.is_busy)
        stage.is_deaf = True
        stage.source.permits.release(NUM_BLOCKS)
        await stage.until(lambda: stage.videos.is_committed(job.id, attempt=1))
        stage.service.restart()
        stage.is_deaf = False
        await stage.state(job, JobState.COMPLETED)
        assert stage.service.job(job.id).attempt == 1

    play(stage, story)


def test_a_video_of_an_attempt_that_was_given_up_is_thrown_away(stage: Stage) -> None:
    async def story(leader: Leader) -> None:
        await stage.until(lambda: bool(stage.told))
        job = stage.accept()
        await stage.until(lambda: leader.is_busy)
        stage.is_deaf = True
        stage.service.silence(TIMES.lost_after_s + 1)
        assert stage.service.job(job.id).state is JobState.QUEUED
        stage.source.permits.release(2 * NUM_BLOCKS)
        await stage.until(lambda: stage.videos.is_committed(job.id, attempt=1))
        stage.is_deaf = False
        await stage.state(job, JobState.COMPLETED)
        assert stage.service.job(job.id).attempt == 2
        assert not stage.videos.is_committed(job.id, attempt=1)

    play(stage, story)


def test_a_leader_that_drains_ends_its_video_and_takes_no_other(stage: Stage) -> None:
    async def story(leader: Leader) -> None:
        await stage.until(lambda: bool(stage.told))
        runs, waits = stage.accept(), stage.accept()
        await stage.until(lambda: leader.is_busy)
        draining = asyncio.create_task(leader.drain(timeout_s=PATIENCE_S))
        stage.source.permits.release(2 * NUM_BLOCKS)
        await draining
        states = [stage.service.job(job.id).state for job in (runs, waits)]
        assert states == [JobState.COMPLETED, JobState.QUEUED]

    play(stage, story)


def test_answers_that_come_twice_or_late_start_nothing_twice(stage: Stage) -> None:
    late: list[Answer] = []

    async def echoing(told: GroupReport) -> Answer:
        answer = await Stage.ask(stage, told)
        if answer.order is not None:
            late.append(answer)
        return replace(answer, order=late[0].order) if late and answer.order is None else answer

    stage.ask = echoing  # type: ignore[method-assign]

    async def story(leader: Leader) -> None:
        await stage.until(lambda: bool(stage.told))
        job = stage.accept()
        stage.source.permits.release(10 * NUM_BLOCKS)
        await stage.state(job, JobState.COMPLETED)
        seen = len(stage.told)
        await stage.until(lambda: len(stage.told) > seen + 3)
        assert not leader.is_busy

    play(stage, story)


def test_a_leader_that_drains_does_not_wait_for_a_dispatcher_that_is_gone(stage: Stage) -> None:
    async def story(leader: Leader) -> None:
        await stage.until(lambda: bool(stage.told))
        job = stage.accept()
        await stage.until(lambda: leader.is_busy)
        stage.is_deaf = True
        stage.source.permits.release(NUM_BLOCKS)
        async with asyncio.timeout(PATIENCE_S):
            await leader.drain(timeout_s=1000 * PATIENCE_S)
        assert stage.videos.is_committed(job.id, attempt=1)

    play(stage, story)


def test_a_leader_tells_of_its_smallest_card_also_while_other_ranks_start(stage: Stage) -> None:
    cards = [{"card_bytes": 2**36}, {"card_bytes": 2**35, "dit_bytes": 7}, {}]
    reports = (StartReport(f"rank {number}", is_output=not number, facts=card) for number, card in enumerate(cards))
    stage.group.gang = StubGang(tuple(reports))

    async def story(leader: Leader) -> None:
        await stage.until(lambda: bool(stage.told))
        stage.group.gang, stage.group.state = None, GroupState.STARTING
        leader.tell()
        await stage.until(lambda: stage.told[-1].condition is GroupCondition.STARTING)
        assert [told.facts for told in stage.told] == [{"card_bytes": 2**35}] * len(stage.told)
        stage.group.gang = StubGang((StartReport("on the CPU", is_output=True, facts={"device": "cpu"}),))
        leader.tell()
        await stage.until(lambda: stage.told[-1].facts == {})

    play(stage, story)


def test_an_idle_leader_keeps_nothing_of_its_reports(stage: Stage) -> None:
    async def story(_: Leader) -> None:
        await stage.until(lambda: len(stage.told) > 3)
        before = len(asyncio.all_tasks())
        await stage.until(lambda: len(stage.told) > 20)
        assert len(asyncio.all_tasks()) <= before + 1

    play(stage, story)


def test_a_dispatcher_that_hangs_does_not_pile_up_reports(stage: Stage) -> None:
    asked: list[GroupReport] = []
    given_up: list[GroupReport] = []

    async def hanging(told: GroupReport) -> Answer:
        if told.run is None:
            return await Stage.ask(stage, told)
        asked.append(told)
        try:
            await asyncio.sleep(1000)
        finally:
            given_up.append(told)
        raise AssertionError

    stage.ask = hanging  # type: ignore[method-assign]

    async def story(leader: Leader) -> None:
        await stage.until(lambda: bool(stage.told))
        stage.accept()
        for number in range(20):
            await stage.until(lambda number=number: len(asked) > number)  # type: ignore[misc]
            leader.tell()
        assert len(asked) - len(given_up) <= 5

    play(stage, story)
