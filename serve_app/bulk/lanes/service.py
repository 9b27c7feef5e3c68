"""Lanes of the serve pool: rows go to a running service as class bulk, and share its groups with online requests.

The service decides what runs when, and tries again what a lost group had. A lane has one row of it under way.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray

from serve_app.bulk.lanes.answers import Answers
from serve_app.bulk.lanes.failures import row_error, story_of
from serve_app.bulk.lanes.messages import LaneStatus, RowOrder, RowReport
from serve_app.bulk.lanes.result import MadeVideo, Published, result_of
from serve_app.bulk.lanes.row_log import RowLog
from serve_app.bulk.lanes.service_client import ServiceClient, ServiceModel, ServiceRefusedError
from serve_app.bulk.outcomes import Code, RowError
from serve_app.bulk.output import RowOutput, open_output
from serve_app.bulk.row import Document
from serve_app.bulk.spool import opened_spool, place_of_lanes
from serve_app.errors import AvatarError, UnavailableError
from serve_app.jobs.messages import GroupCondition

LANES_PER_GROUP = 2
"""So many rows of the job wait or run for each group of the service: it never has to wait for us."""
_AT_ONCE = 1
_CONTROL_THREADS = 2
_CLOSE_S = 20.0
"""Videos under way come to their next block border within this time; if not, the service stops them all the same."""


@dataclass(eq=False)
class _Attempt:
    """A row on its way through the service, also for whoever asks how far it is.

    `stage` is as RowError has it. `lost_s`: what groups spent on a video that they did not finish; one that is there
    is found by the next attempt.
    """

    order: RowOrder
    output: RowOutput
    client: ServiceClient
    log: RowLog
    stage: str = "upload"
    lost_s: float = 0.0


class ServiceLane:
    """One row at a time; an actor that computes nothing. `spools`: where its node keeps what is on its way."""

    def __init__(self, name: str, service: ServiceModel, output: str, run_id: str, spools: Path) -> None:
        self._open = ExitStack()
        self._name, self._service, self._run_id = name, service, run_id
        self._output, self._spool = open_output(output), self._open.enter_context(opened_spool(spools))
        self._is_stopped = threading.Event()
        self._now: _Attempt | None = None
        self._answers = Answers()
        self._busy_s = 0.0

    @ray.method(concurrency_group="rows")
    def render(self, order: RowOrder) -> RowReport:
        """Obeys an order; one that came before is not obeyed again, but answered."""
        return self._answers.of(order, self._rendered)

    @ray.method(concurrency_group="control")
    def forget(self, seq: int, attempt: int) -> None:
        """Lets go of an answer that has arrived."""
        self._answers.forget(seq, attempt)

    @ray.method(concurrency_group="control")
    def status(self) -> LaneStatus:
        """Returns what the service does for this lane; of a video it tells percents."""
        told = LaneStatus(self._name, GroupCondition.READY, busy_s=self._busy_s, orders=self._answers.orders)
        now = self._now
        if now is None:
            return told
        return replace(
            told,
            condition=GroupCondition.BUSY,
            custom_id=now.order.custom_id,
            attempt=now.order.attempt,
            blocks_done=now.client.progress,
            num_blocks=100,
        )

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Lets what runs end at its next block border."""
        self._is_stopped.set()

    @ray.method(concurrency_group="rows")
    def close(self) -> None:
        """Removes what is left on this machine; the row under way is over then, for both are in the same group."""
        self._open.close()

    def _rendered(self, order: RowOrder) -> RowReport:
        output = RowOutput(self._output, order.custom_id, self._spool)
        log = RowLog(order, lane=self._name, run_id=self._run_id)
        is_stopped = self._is_stopped.is_set
        with ServiceClient(
            self._service.url, order, run_id=self._run_id, spool=self._spool, is_stopped=is_stopped
        ) as client:
            self._now = attempt = _Attempt(order, output, client, log)
            try:
                report = self._done(attempt)
            except Exception as error:
                report = self._failed(attempt, error)
            finally:
                self._now = None
        return log.kept(output, report)

    def _done(self, attempt: _Attempt) -> RowReport:
        """Returns the report of a row that is committed: by this attempt, or by whoever was before it."""
        order, output = attempt.order, attempt.output
        result, busy_s = output.result(), 0.0
        if result is None or result["row_key"] != order.row_key:
            output.prepare()
            video = self._made(attempt)
            result, busy_s = self._kept(attempt, video), _took_s(video)
        else:
            output.archive(order.archive_name)
        attempt.log.note("is done")
        return RowReport(order.seq, order.attempt, self._name, result=result, busy_s=busy_s)

    def _made(self, attempt: _Attempt) -> Document:
        """Returns the video object of what the service has made; raises ServiceRefusedError, UnavailableError."""
        attempt.stage = "inputs"
        attempt.log.note(f"is asked of {self._service.url}")
        video = attempt.client.video()
        attempt.stage = "upload"
        self._busy_s += _took_s(video)
        attempt.log.note(f"is {video['id']} there: {video['status']}, {_took_s(video):.1f} s on a group")
        if video["status"] != "completed":
            attempt.lost_s = _took_s(video)
            raise ServiceRefusedError(video["error"] or {"code": "cancelled", "message": "the video was stopped"})
        return video

    def _kept(self, attempt: _Attempt, video: Document) -> Document:
        """Brings a video to its place and commits it; returns the result that counts."""
        order, output = attempt.order, attempt.output
        try:
            with output.sink() as sink:
                attempt.client.download(video["id"], sink)
            sha256, num_bytes = output.publish()
            output.archive(order.archive_name)
            result = output.commit(self._result(order, video, Published(output.uri, sha256, num_bytes)))
        finally:
            output.discard()
        attempt.client.forget(video["id"])
        return result

    def _result(self, order: RowOrder, video: Document, published: Published) -> Document:
        took_s = _took_s(video)
        gpu_s = round(took_s * self._service.num_ranks, 3)
        made = MadeVideo(video["size"], video["num_frames"], float(video["seconds"]), render_s=took_s, gpu_s=gpu_s)
        return result_of(order, made, published, lane=self._name, run_id=self._run_id)

    def _failed(self, attempt: _Attempt, error: Exception) -> RowReport:
        order = attempt.order
        told = self._error(attempt, error)
        attempt.log.note(f"failed: {told.code}: {told.message}")
        if not isinstance(error, ServiceRefusedError | AvatarError):
            attempt.log.note(story_of(error))
        return RowReport(order.seq, order.attempt, self._name, error=told, busy_s=attempt.lost_s)

    def _error(self, attempt: _Attempt, error: Exception) -> RowError:
        number = attempt.order.attempt
        match error:
            case ServiceRefusedError(code=Code.CANCELLED) if not self._is_stopped.is_set():
                return RowError(Code.TIMEOUT, str(error), "render", attempt=number, group=self._name)
            case ServiceRefusedError():
                return RowError(error.code, str(error), "render", attempt=number, group=self._name)
            case UnavailableError():
                return RowError(Code.NODE_LOST, str(error), "render", attempt=number, group=self._name)
        return row_error(error, attempt=number, lane=self._name, stage=attempt.stage)


def _took_s(video: Document) -> float:
    """Returns how long a group of the service worked on a video."""
    return float(video["inference_time_s"] or 0.0)


class ServiceLanes:
    """The lanes of a job by a service; see `job.LaneSet`."""

    def __init__(self, service: ServiceModel, *, output: str, run_id: str) -> None:
        self._service = service
        self._output, self._run_id = output, run_id
        self.actors: dict[str, Any] = {}
        self.at_once = _AT_ONCE

    def __enter__(self) -> Self:
        """Makes the lanes on this node, where the manifest's files are."""
        as_remote: Any = ray.remote
        make = as_remote(concurrency_groups={"rows": _AT_ONCE, "control": _CONTROL_THREADS})(ServiceLane)
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        for index in range(self._service.num_groups * LANES_PER_GROUP):
            name = f"lane-{index}"
            options = make.options(num_cpus=0, max_restarts=-1, max_task_retries=0, label_selector=here)
            self.actors[name] = options.remote(name, self._service, self._output, self._run_id, place_of_lanes())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Has the service stop what it still makes for this job, within a limit."""
        for actor in self.actors.values():
            actor.stop.remote()
        closing = [actor.close.remote() for actor in self.actors.values()]
        ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        for actor in self.actors.values():
            ray.kill(actor)

    def model(self) -> str:
        """Returns what stands for the checkpoint: a service tells its model's name alone."""
        return f"service model {self._service.model}"

    def start(self) -> None:
        """The service has started already."""
