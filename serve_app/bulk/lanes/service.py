"""Lanes of the serve pool: rows go to a running service as class bulk, and share its groups with online requests.

The service decides what runs when, and tries again what a lost group had. A lane has one row of it under way.
"""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray

from serve_app.bulk.lanes.answers import Answers
from serve_app.bulk.lanes.failures import row_error
from serve_app.bulk.lanes.messages import LaneStatus, RowOrder, RowReport
from serve_app.bulk.lanes.result import MadeVideo, Published, result_of
from serve_app.bulk.lanes.service_client import ServiceClient, ServiceModel, ServiceRefusedError
from serve_app.bulk.outcomes import Code, RowError
from serve_app.bulk.output import RowOutput, open_output
from serve_app.bulk.row import Document
from serve_app.errors import UnavailableError
from serve_app.jobs.messages import GroupCondition

LANES_PER_GROUP = 2
"""So many rows of the job wait or run for each group of the service: it never has to wait for us."""
_AT_ONCE = 1
_CONTROL_THREADS = 2


class ServiceLane:
    """One row at a time; an actor that computes nothing."""

    def __init__(self, name: str, service: ServiceModel, output: str, run_id: str) -> None:
        self._name, self._service, self._run_id = name, service, run_id
        self._output = open_output(output)
        self._spool = tempfile.TemporaryDirectory()
        self._is_stopped = threading.Event()
        self._now: tuple[RowOrder, ServiceClient] | None = None
        self._answers = Answers()
        self._busy_s = 0.0
        self._stage = ""

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
        if self._now is None:
            return told
        order, client = self._now
        return replace(
            told,
            condition=GroupCondition.BUSY,
            custom_id=order.custom_id,
            attempt=order.attempt,
            blocks_done=client.progress,
            num_blocks=100,
        )

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Lets what runs end at its next block border."""
        self._is_stopped.set()

    def _rendered(self, order: RowOrder) -> RowReport:
        output = RowOutput(self._output, order.custom_id, Path(self._spool.name))
        is_stopped = self._is_stopped.is_set
        self._stage = "upload"
        with ServiceClient(self._service.url, order, run_id=self._run_id, is_stopped=is_stopped) as client:
            self._now = order, client
            try:
                return self._done(order, output, client)
            except Exception as error:
                return self._failed(order, error)
            finally:
                self._now = None

    def _done(self, order: RowOrder, output: RowOutput, client: ServiceClient) -> RowReport:
        result, busy_s = output.result(), 0.0
        if result is None or result["row_key"] != order.row_key:
            output.prepare()
            self._stage = "inputs"
            video = client.video()
            self._stage = "upload"
            busy_s = float(video["inference_time_s"] or 0.0)
            self._busy_s += busy_s
            if video["status"] != "completed":
                raise ServiceRefusedError(video["error"] or {"code": "cancelled", "message": "the video was stopped"})
            with output.sink() as sink:
                client.download(video["id"], sink)
            sha256, num_bytes = output.publish()
            output.archive(order.archive_name)
            result = output.commit(self._result(order, video, Published(output.uri, sha256, num_bytes)))
            client.forget(video["id"])
        else:
            output.archive(order.archive_name)
        return RowReport(order.seq, order.attempt, self._name, result=result, busy_s=busy_s)

    def _result(self, order: RowOrder, video: Document, published: Published) -> Document:
        """Returns the result of a video that the service made; its groups' sizes are its own affair."""
        took_s = float(video["inference_time_s"])
        made = MadeVideo(video["size"], video["num_frames"], float(video["seconds"]), render_s=took_s, gpu_s=took_s)
        return result_of(order, made, published, lane=self._name, run_id=self._run_id)

    def _failed(self, order: RowOrder, error: Exception) -> RowReport:
        if isinstance(error, ServiceRefusedError):
            code = error.code
            if code is Code.CANCELLED and not self._is_stopped.is_set():
                code = Code.TIMEOUT
            told = RowError(code, str(error), "render", attempt=order.attempt, group=self._name)
        elif isinstance(error, UnavailableError):
            told = RowError(Code.NODE_LOST, str(error), "render", attempt=order.attempt, group=self._name)
        else:
            told = row_error(error, attempt=order.attempt, lane=self._name, stage=self._stage)
        return RowReport(order.seq, order.attempt, self._name, error=told)


class ServiceLanes:
    """The lanes of a job by a service; see `job.LaneSet`."""

    def __init__(self, service: ServiceModel, *, output: str, run_id: str) -> None:
        self._service = service
        self._output, self._run_id = output, run_id
        self._open = ExitStack()
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
            self.actors[name] = options.remote(name, self._service, self._output, self._run_id)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for actor in self.actors.values():
            ray.kill(actor)

    def model(self) -> str:
        """Returns what stands for the checkpoint: a service tells its model's name alone."""
        return f"service model {self._service.model}"

    def start(self) -> None:
        """The service has started already."""
