"""FanOut: orders travel to lanes, and reports back, through Ray Data.

One read task yields the orders as the driver gives them, a block each; a pool of actors without GPU passes each on to
its lane and waits. Only addresses and numbers travel: what Ray holds does not grow with the manifest. Which row goes
where and what is tried again is the driver's affair: Ray Data would try for ever, or drop rows in silence.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.util.queue import Queue

from serve_app.bulk.lanes.messages import RowOrder, RowReport
from serve_app.bulk.outcomes import Code, RowError

_LOOK_EVERY_S = 60.0
_STOP_S = 30.0
_FOREVER_S = 10 * 365 * 24 * 3600
"""Ray Data gives up after half an hour without a block: some videos take longer, and we have limits of our own."""


class FanOut:
    """Sends orders and gathers reports, until it is closed."""

    def __init__(self, lanes: Mapping[str, Any], *, at_once: int) -> None:
        """`lanes` are actors with `render(order)`; each takes `at_once` orders."""
        self.reports: queue.SimpleQueue[RowReport | Exception] = queue.SimpleQueue()
        self._lanes = dict(lanes)
        self._at_once = at_once
        self._gathering = threading.Thread(target=self._gather, name="fan-out", daemon=True)

    def __enter__(self) -> Self:
        self._here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # the loss of another ends nothing
        self._orders = Queue(actor_options={"num_cpus": 0, "label_selector": self._here})
        self._gathering.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Ends the stream of orders; what its lanes still work on is no longer heard of."""
        with suppress(RayError):  # a queue that is gone has ended the stream
            self._orders.put(None)
        self._gathering.join(_STOP_S)
        self._orders.shutdown(force=True)

    def send(self, lane: str, order: RowOrder) -> None:
        """Gives an order to a lane that has fewer than `at_once`; never waits long."""
        self._orders.put(json.dumps({"lane": lane, "order": asdict(order)}), timeout=_STOP_S)

    def _gather(self) -> None:
        try:
            for batch in self._dataset().iter_batches(batch_size=1, prefetch_batches=0):
                for report in batch["report"]:
                    self.reports.put(_report_of(report))
        except Exception as error:  # told to the driver, which cannot go on without
            self.reports.put(error)

    def _dataset(self) -> ray.data.Dataset:
        _set_up_ray_data()
        orders = ray.data.read_datasource(
            _OrderSource(self._orders),
            override_num_blocks=1,
            num_cpus=0,
            label_selector=self._here,
        )
        passed: ray.data.Dataset = orders.map_batches(
            _PassOn,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=0,
            fn_constructor_args=(self._lanes,),
            compute=ray.data.ActorPoolStrategy(
                size=len(self._lanes),
                max_tasks_in_flight_per_actor=self._at_once,
                max_concurrent_calls_per_actor=self._at_once,
                enable_true_multi_threading=True,
            ),
        )
        return passed


def _set_up_ray_data() -> None:
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # a block holds one order: Ray Data works by block
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = _FOREVER_S
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class _OrderSource(Datasource):
    """One read task that yields orders until None comes."""

    def __init__(self, orders: Queue) -> None:
        self._orders = orders

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, *_: object, **__: object) -> list[ReadTask]:
        """See Datasource."""
        nothing_known = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(_reader(self._orders), nothing_known)]


def _reader(orders: Queue) -> Callable[[], Iterator[pa.Table]]:
    def read() -> Iterator[pa.Table]:
        while (order := orders.get()) is not None:
            yield pa.table({"order": [order]})

    return read


class _PassOn:
    """Gives orders to lanes and waits for their reports; an actor of Ray Data's, which may call it on several threads.

    A lane that dies or falls silent is ended by the driver; then its orders come back from here.
    """

    def __init__(self, lanes: Mapping[str, Any]) -> None:
        self._lanes = lanes

    def __call__(self, batch: pa.Table) -> pa.Table:
        told = json.loads(batch["order"][0].as_py())
        report = self._passed_on(told["lane"], RowOrder(**told["order"]))
        return pa.table({"report": [json.dumps(asdict(report))]})

    def _passed_on(self, name: str, order: RowOrder) -> RowReport:
        lane = self._lanes[name]
        try:
            working = lane.render.remote(order)
            while not ray.wait([working], timeout=_LOOK_EVERY_S)[0]:
                continue
            report: RowReport = ray.get(working)
            lane.forget.remote(order.seq, order.attempt)
        except (RayActorError, RayTaskError, ActorUnavailableError) as error:
            return _lost(name, order, error)
        return report


def _lost(lane: str, order: RowOrder, error: Exception) -> RowReport:
    """Returns the report of an attempt whose lane cannot tell any more."""
    message = f"the leader of {lane} is gone: {str(error).splitlines()[0]}"
    return RowReport(
        order.seq,
        order.attempt,
        lane,
        error=RowError(Code.NODE_LOST, message, "render", attempt=order.attempt, group=lane),
        has_brought_down=not isinstance(error, ActorUnavailableError),
        is_begun=not isinstance(error, ActorUnavailableError),
    )


def _report_of(text: str) -> RowReport:
    told = json.loads(text)
    error = told.pop("error")
    if error is None:
        return RowReport(**told)
    return RowReport(**told, error=RowError(**{**error, "code": Code(error["code"])}))
