"""A gang: one process per rank, started together, running one task at a time, ended together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_cluster.errors import FailureKind, GangAbandonedError, GangBusyError, RankFailedError
from ray_cluster.gang_run import END, IsOver, RankCalls
from ray_cluster.gang_watch import GangWatch, OnFailure, Stopwatch
from ray_cluster.placement import Placement
from ray_cluster.program import Seat, StartReport
from ray_cluster.rank_actor import Heartbeat, RankActor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GangTimeouts:
    """Every limit of a gang, in seconds.

    `heartbeat_s` counts from the start on; before, while libraries load and may hold the interpreter, it is
    `start_heartbeat_s`. How long a result may take belongs to the task: see `Gang.run`.
    """

    placement_s: float = 60.0
    start_s: float = 600.0
    start_heartbeat_s: float = 60.0
    heartbeat_every_s: float = 1.0
    heartbeat_s: float = 10.0
    drain_s: float = 10.0
    stop_s: float = 10.0
    kill_s: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} {value} is no time to wait; give more than 0 seconds")
        if self.heartbeat_every_s > 1:
            raise ValueError(f"heartbeat_every_s {self.heartbeat_every_s} is too seldom; give at most 1 second")


@dataclass(frozen=True)
class GangSpec:
    """What the ranks of a gang run: a RankProgram by its import path, made with `options`.

    `run_ahead`: rank 0 may begin num_ranks + run_ahead results beyond those taken. `num_buffered`: how many finished
    results may wait for the consumer. `env` is set before the program is imported.
    """

    program: str
    options: Mapping[str, Any] = field(default_factory=dict)
    threads_per_rank: int = 1
    run_ahead: int = 3
    num_buffered: int = 2
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if ":" not in self.program:
            raise ValueError(f"program {self.program!r} is no import path; write package.module:name")
        for name, least in (("threads_per_rank", 1), ("run_ahead", 0), ("num_buffered", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} is less than {least}; give at least {least}")


class Gang:
    """The ranks of one group, alive and met. Made by `Gang.start`."""

    def __init__(self, name: str, actors: list[Any], watch: GangWatch, spec: GangSpec, timeouts: GangTimeouts) -> None:
        self.name = name
        self.reports: tuple[StartReport, ...] = ()
        self._actors = actors
        self._watch = watch
        self._spec = spec
        self._timeouts = timeouts
        self._is_busy = threading.Lock()
        self._run = 0

    @classmethod
    def start(
        cls,
        placement: Placement,
        spec: GangSpec,
        *,
        name: str = "gang",
        timeouts: GangTimeouts | None = None,
        on_failure: OnFailure = lambda _: None,
        is_abandoned: Callable[[], bool] = lambda: False,
    ) -> Gang:
        """Starts all ranks at once, lets them meet and load; raises RankFailedError, with no process left.

        `on_failure` hears of the first failure, from whatever thread sees it, when all ranks are dead.
        """
        timeouts = timeouts or GangTimeouts()
        start = time.monotonic()
        actors = _start_actors(placement, spec)
        watch = GangWatch(
            name,
            actors,
            every_s=timeouts.heartbeat_every_s,
            kill_timeout_s=timeouts.kill_s,
            on_failure=on_failure,
        )
        gang = cls(name, actors, watch, spec, timeouts)
        watch.start(limit_s=timeouts.start_heartbeat_s)
        try:
            gang._meet(is_abandoned)
        except BaseException:
            gang.kill()
            raise
        seconds = round(time.monotonic() - start, 3)
        log.info("gang started", extra={"gang": name, "ranks": len(actors), "seconds": seconds})
        return gang

    def run(self, task: Any, *, item_limit_s: Callable[[int], float]) -> Generator[Any, None, None]:  # noqa: ANN401
        """Yields the results of a task, in order, while it runs on all ranks.

        `item_limit_s(n)`: how long the ranks may work on result n, while the consumer waits, without a note.
        A consumer that closes the iterator cancels the task. Raises RankFailedError, with no process left, and
        GangBusyError. Arrays in the results are views into shared memory, which they hold as long as they live.
        """
        if not self._is_busy.acquire(blocking=False):
            raise GangBusyError(f"gang {self.name} runs a task already", remedy="wait for its end, or cancel it")
        try:
            if self.failure is not None:
                raise self.failure
            yield from self._results(task, item_limit_s)
        finally:
            self._is_busy.release()

    def cancel(self) -> None:
        """Asks for the task that runs, if any, to end early; from any thread. It does so at its next border."""
        self._actors[0].cancel.remote(self._run)

    def stop(self) -> None:
        """Lets every rank close in good order, within a limit, then ends the processes."""
        self._watch.stop()
        if self.failure is None:
            closings = [actor.close.remote() for actor in self._actors]
            ray.wait(closings, num_returns=self.num_ranks, timeout=self._timeouts.stop_s)
            self._watch.kill()
            log.info("gang stopped", extra={"gang": self.name})

    def kill(self) -> None:
        """Ends the processes at once."""
        self._watch.stop()
        self._watch.kill()

    def abort(self, why: str) -> None:
        """Fails the gang: a running task raises this reason to its consumer."""
        self._watch.fail(self._watch.stuck(why))

    def heartbeats(self) -> list[Heartbeat]:
        """Returns what every rank told last: its process, activity and memory."""
        return self._watch.heartbeats()

    @property
    def failure(self) -> RankFailedError | None:
        """Why the gang is dead, or None."""
        return self._watch.failure

    @property
    def num_ranks(self) -> int:
        """How many ranks there are."""
        return len(self._actors)

    def __enter__(self) -> Gang:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _meet(self, is_abandoned: Callable[[], bool]) -> None:
        """Loads every program; rank 0 opens the rendezvous while the others still load; then all start."""
        in_time = self._in_time(self._timeouts.start_s, "not started")

        def is_over() -> RankFailedError | None:
            if is_abandoned():
                raise GangAbandonedError(f"gang {self.name} is no longer wanted", remedy="start it again")
            return in_time()

        loads = self._on_all(lambda _, actor: actor.load.remote(self._spec.program, dict(self._spec.options)))
        rendezvous = self._actors[0].open_rendezvous.remote()
        RankCalls(self._watch, loads).answers(is_over=is_over)
        address = RankCalls(self._watch, {0: rendezvous}).answers(is_over=is_over)[0]
        starts = self._on_all(lambda rank, actor: actor.start.remote(Seat(rank, self.num_ranks, address)))
        reports = RankCalls(self._watch, starts).answers(is_over=is_over)
        self.reports = tuple(reports[rank] for rank in range(self.num_ranks))
        self._watch.accept([report.role for report in self.reports], limit_s=self._timeouts.heartbeat_s)
        self._check_reports()

    def _check_reports(self) -> None:
        outputs = [rank for rank, report in enumerate(self.reports) if report.is_output]
        if len(outputs) != 1:
            raise self._watch.fail(
                RankFailedError(
                    FailureKind.EXCEPTION,
                    rank=None,
                    role="",
                    detail=f"ranks {outputs} report is_output, but exactly one rank of a gang yields results",
                    remedy=f"correct the start reports of {self._spec.program}",
                )
            )

    def _results(self, task: Any, item_limit_s: Callable[[int], float]) -> Iterator[Any]:  # noqa: ANN401
        self._run += 1
        calls = self._begin(ray.put(task))
        num_taken = 0
        try:
            while True:
                is_over = self._with_progress(item_limit_s(num_taken), num_taken)
                result = calls.take(is_over=is_over)
                if result is END:
                    calls.answers(is_over=is_over)
                    return
                num_taken += 1
                self._actors[0].advance.remote(self._run, num_taken)
                yield result
        except BaseException:
            if self.failure is None:
                self._drain(calls)
            raise

    def _begin(self, task: Any) -> RankCalls:  # noqa: ANN401
        """Calls all ranks; the output rank streams, and waits once its results are not taken."""
        output = next(rank for rank, report in enumerate(self.reports) if report.is_output)
        streaming = self._actors[output].stream.options(
            num_returns="streaming", _generator_backpressure_num_objects=self._spec.num_buffered
        )
        stream = streaming.remote(self._run, task)
        follows = self._on_all(lambda _, actor: actor.follow.remote(self._run, task), but=output)
        return RankCalls(self._watch, follows, stream=(output, stream))

    def _drain(self, calls: RankCalls) -> None:
        """Lets a task end that nobody wants any more; a gang that does not come to its border in time is killed."""
        self.cancel()
        is_over = self._in_time(self._timeouts.drain_s, "the task was cancelled but has not ended")
        try:
            while calls.take(is_over=is_over) is not END:
                pass
            calls.answers(is_over=is_over)
        except RankFailedError as error:
            log.warning("task not drained", extra={"gang": self.name, "kind": error.kind.value})

    def _with_progress(self, limit_s: float, index: int) -> IsOver:
        """Returns the rule that any rank notes progress every `limit_s`, from now on."""
        quiet = Stopwatch()
        num_notes = self._watch.num_notes()

        def is_over() -> RankFailedError | None:
            nonlocal num_notes
            if self._watch.num_notes() != num_notes:
                num_notes = self._watch.num_notes()
                quiet.reset()
            if quiet.seconds() <= limit_s + self._timeouts.heartbeat_every_s:  # notes come with the heartbeats
                return None
            return self._watch.stuck(f"no note from any rank for {limit_s:.3g} s while waiting for result {index}")

        return is_over

    def _in_time(self, limit_s: float, what: str) -> IsOver:
        """Returns the rule that the end comes within `limit_s`, from now on."""
        deadline = time.monotonic() + limit_s
        return lambda: self._watch.stuck(f"{what} within {limit_s:g} s") if time.monotonic() > deadline else None

    def _on_all(self, call: Callable[[int, Any], Any], *, but: int = -1) -> dict[int, Any]:
        return {rank: call(rank, actor) for rank, actor in enumerate(self._actors) if rank != but}


def _start_actors(placement: Placement, spec: GangSpec) -> list[Any]:
    """Creates the actors of all ranks, without waiting for their processes."""
    bundles = placement.bundles
    window = bundles.num_ranks + spec.run_ahead
    env = {"OMP_NUM_THREADS": str(spec.threads_per_rank), **spec.env}
    as_remote: Any = ray.remote
    make = as_remote(concurrency_groups={"control": 1})(RankActor)
    return [
        make.options(
            num_cpus=bundles.cpus_per_rank,
            num_gpus=bundles.gpus_per_rank,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": env},
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement.group, placement_group_bundle_index=bundle),
        ).remote(rank, window=window)
        for rank, bundle in enumerate(placement.rank_bundles())
    ]
