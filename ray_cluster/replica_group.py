"""A replica group: a place on the cluster and the gang on it, rebuilt when it fails, until its budget is spent."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any

from ray_cluster.bundles import GroupBundles
from ray_cluster.errors import (
    GangAbandonedError,
    GroupUnavailableError,
    PlacementError,
    RankFailedError,
    RestartBudgetSpentError,
)
from ray_cluster.gang import Gang, GangSpec, GangTimeouts
from ray_cluster.placement import Placement, adopt_placement, create_placement
from ray_cluster.restart_budget import RestartBudget, RestartPolicy

log = logging.getLogger(__name__)


class GroupState(Enum):
    """STARTING is also the state of a group that is rebuilt. STOPPED and FAILED are final."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


LEGAL_TRANSITIONS = {
    GroupState.STARTING: {GroupState.READY, GroupState.DRAINING, GroupState.FAILED},
    GroupState.READY: {GroupState.BUSY, GroupState.STARTING, GroupState.DRAINING},
    GroupState.BUSY: {GroupState.READY, GroupState.STARTING, GroupState.DRAINING},
    GroupState.DRAINING: {GroupState.STOPPED},
    GroupState.STOPPED: set(),
    GroupState.FAILED: set(),
}
FINAL = (GroupState.STOPPED, GroupState.FAILED)


@dataclass(frozen=True)
class GroupEvent:
    """A change of state. `reason`: the error behind it, or nothing; `num_restarts`: gangs rebuilt so far."""

    group: str
    before: GroupState
    after: GroupState
    reason: str
    num_restarts: int


class ReplicaGroup:
    """Runs one task at a time on a gang that it keeps alive.

    One thread owns placement and gang; the others ask it by changing the state. With `adopts_placement` this process
    is the leader in a placement group that somebody else made and removes; else the group makes its own.
    """

    def __init__(
        self,
        name: str,
        spec: GangSpec,
        bundles: GroupBundles,
        *,
        adopts_placement: bool = False,
        timeouts: GangTimeouts | None = None,
        restarts: RestartPolicy | None = None,
        on_event: Callable[[GroupEvent], None] = lambda _: None,
    ) -> None:
        """`on_event` hears of every change, in order; it must return soon and call nothing of the group."""
        self.name = name
        self._spec = spec
        self._bundles = bundles
        self._adopts_placement = adopts_placement
        self._timeouts = timeouts or GangTimeouts()
        self._policy = restarts or RestartPolicy()
        self._budget = RestartBudget(self._policy)
        self._on_event = on_event
        self._changed = threading.Condition()
        self._state = GroupState.STARTING
        self._gang: Gang | None = None
        self._is_claimed = False
        self._is_stopping = False
        self._num_built = 0
        self._error: Exception | None = None
        self._last_reason = ""
        self._owner = threading.Thread(target=self._own, name=f"group-{name}", daemon=True)

    def start(self) -> None:
        """Begins to build; `wait_ready` and `run` tell how it ends."""
        self._owner.start()

    def wait_ready(self, *, timeout_s: float) -> None:
        """Waits until the group takes a task; raises what ended the group, or GroupUnavailableError."""
        with self._changed:
            self._await_ready(timeout_s)

    def run(
        self,
        task: Any,  # noqa: ANN401
        *,
        item_limit_s: Callable[[int], float],
        ready_timeout_s: float = 600.0,
    ) -> Generator[Any, None, None]:
        """Waits until the group is ready, then yields the results of a task: see Gang.run.

        A failure is raised to this caller; meanwhile the group rebuilds its gang for the next one.
        """
        gang = self._claim(ready_timeout_s)
        try:
            yield from gang.run(task, item_limit_s=item_limit_s)
        finally:
            self._release(gang)

    def cancel(self) -> None:
        """Asks for the running task, if any, to end early."""
        with self._changed:
            if self._is_claimed and self._gang is not None:
                self._gang.cancel()

    def drain(self, *, timeout_s: float) -> None:
        """Takes no more tasks, lets the running one end within `timeout_s`, else cancels it, and stops."""
        with self._changed:
            if self._state in FINAL:
                return
            if self._state is not GroupState.DRAINING:
                self._become(GroupState.DRAINING)
            self._changed.wait_for(lambda: not self._is_claimed, timeout_s)
            self.cancel()
            self._changed.wait_for(lambda: not self._is_claimed, self._timeouts.drain_s)
            gang = self._gang if self._is_claimed else None
            self._is_stopping = True
            self._changed.notify_all()
        if gang is not None:
            gang.abort(f"group {self.name} was stopped")
        if self._owner.is_alive():
            self._owner.join(self._timeouts.stop_s + 2 * self._timeouts.kill_s)

    def stop(self) -> None:
        """Cancels the running task, if any, and ends the group."""
        self.drain(timeout_s=0)

    @property
    def state(self) -> GroupState:
        """What the group does now."""
        return self._state

    @property
    def num_restarts(self) -> int:
        """How many gangs were rebuilt so far."""
        return max(0, self._num_built - 1)

    @property
    def last_reason(self) -> str:
        """Why the group was not ready, the last time that it was not; "" if it always was."""
        return self._last_reason

    @property
    def gang(self) -> Gang | None:
        """The gang of now, for its heartbeats."""
        return self._gang

    def __enter__(self) -> ReplicaGroup:
        self.start()
        try:
            self.wait_ready(timeout_s=self._timeouts.placement_s + self._timeouts.start_s)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _claim(self, timeout_s: float) -> Gang:
        with self._changed:
            self._await_ready(timeout_s)
            assert self._gang is not None
            self._is_claimed = True
            self._become(GroupState.BUSY)
            return self._gang

    def _release(self, gang: Gang) -> None:
        with self._changed:
            self._is_claimed = False
            if self._state is GroupState.BUSY:
                reason = str(gang.failure or "")
                self._become(GroupState.STARTING if reason else GroupState.READY, reason=reason)
            self._changed.notify_all()

    def _await_ready(self, timeout_s: float) -> None:
        no_more = (GroupState.DRAINING, *FINAL)
        self._changed.wait_for(lambda: self._is_ready() or self._state in no_more, timeout_s)
        if self._state is GroupState.FAILED:
            assert self._error is not None
            raise self._error
        if self._state in no_more:
            raise GroupUnavailableError(f"group {self.name} is {self._state.value}", remedy="use another group")
        if not self._is_ready():
            why = f", because {self._last_reason}" if self._last_reason else ""
            raise GroupUnavailableError(
                f"group {self.name} is still {self._state.value} after {timeout_s:g} s{why}",
                remedy="try again later, or use another group",
            )

    def _is_ready(self) -> bool:
        return self._state is GroupState.READY and self._gang is not None and self._gang.failure is None

    def _become(self, state: GroupState, *, reason: str = "") -> None:
        """Changes the state; the caller holds the lock."""
        before = self._state
        assert state in LEGAL_TRANSITIONS[before], f"{before} -> {state}"
        self._state = state
        self._last_reason = reason or self._last_reason
        event = GroupEvent(self.name, before, state, reason, self.num_restarts)
        log.info("group state", extra={"group": self.name, "before": before.value, "after": state.value})
        self._on_event(event)
        self._changed.notify_all()

    def _own(self) -> None:
        """The owner thread: whatever it takes from the cluster ends with it."""
        try:
            with self._place() as placement:
                while not self._is_stopping:
                    self._live(placement)
        except GangAbandonedError:
            pass
        except Exception as error:
            self._give_up(error)
        with self._changed:
            if self._state is GroupState.DRAINING:
                self._become(GroupState.STOPPED)

    def _place(self) -> AbstractContextManager[Placement]:
        if self._adopts_placement:
            return adopt_placement(self._bundles)
        return create_placement(
            self._bundles, name=self.name, timeout_s=self._timeouts.placement_s, is_abandoned=self._is_abandoned
        )

    def _live(self, placement: Placement) -> None:
        """One life of a gang: builds it, gives it to the callers until it fails, and waits out the back-off."""
        try:
            placement.wait(timeout_s=self._timeouts.placement_s, is_abandoned=self._is_abandoned)
            gang = self._build(placement)
        except PlacementError as error:  # a node was lost: that is no fault of the gang, and another may come
            self._remember(str(error))
            return
        except RankFailedError as error:
            if self._num_built == 0 and not error.kind.is_transient:
                raise
            self._back_off(error)
            return
        self._serve(gang)
        if gang.failure is None:
            gang.stop()
        else:
            self._back_off(gang.failure)

    def _build(self, placement: Placement) -> Gang:
        return Gang.start(
            placement,
            self._spec,
            name=self.name,
            timeouts=self._timeouts,
            on_failure=self._on_failure,
            is_abandoned=self._is_abandoned,
        )

    def _serve(self, gang: Gang) -> None:
        """Offers the gang until it fails or the group stops, and nobody uses it any more."""
        with self._changed:
            self._num_built += 1
            self._gang = gang
            if self._state is GroupState.STARTING:
                self._become(GroupState.READY)
            self._changed.wait_for(lambda: not self._is_claimed and (gang.failure is not None or self._is_stopping))
            self._gang = None
            if self._state is GroupState.READY:
                self._become(GroupState.STARTING, reason=str(gang.failure))

    def _back_off(self, error: RankFailedError) -> None:
        self._remember(str(error))
        delay_s = self._budget.spend(str(error), now=time.monotonic())
        if delay_s is None:
            reasons = self._budget.reasons()
            spent = RestartBudgetSpentError(
                self.name, reasons=reasons, max_restarts=self._policy.max_restarts, within_s=self._policy.within_s
            )
            raise spent from error
        log.warning("group restarts", extra={"group": self.name, "kind": error.kind.value, "delay_s": delay_s})
        with self._changed:
            self._changed.wait_for(self._is_abandoned, delay_s)

    def _give_up(self, error: Exception) -> None:
        log.error("group failed", extra={"group": self.name, "error": str(error)})
        with self._changed:
            self._error = error
            if self._state is GroupState.STARTING:
                self._become(GroupState.FAILED, reason=str(error))

    def _remember(self, reason: str) -> None:
        log.warning("group not ready", extra={"group": self.name, "reason": reason})
        with self._changed:
            self._last_reason = reason

    def _on_failure(self, _: RankFailedError) -> None:
        with self._changed:
            self._changed.notify_all()

    def _is_abandoned(self) -> bool:
        return self._is_stopping
