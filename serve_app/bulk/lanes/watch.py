"""LaneWatch: asks lanes what they do, without ever waiting for one, and replaces the leader of one that is silent."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from serve_app.bulk.lanes.messages import LaneStatus
from serve_app.bulk.lasting import Lasting
from serve_app.jobs.messages import GroupCondition

log = logging.getLogger(__name__)

_WAIT_S = 0.05


@dataclass
class _Watched:
    actor: Any
    status: LaneStatus
    asked: Any = None
    asked_at: float = 0.0
    silence: Lasting = field(default_factory=Lasting)


class LaneWatch:
    """The lanes as the course sees them; see `course.Lanes`."""

    def __init__(self, actors: Mapping[str, Any], *, silence_s: float) -> None:
        """A lane that says nothing for `silence_s` is ended, and started anew by Ray."""
        self._silence_s = silence_s
        self._lanes = {
            name: _Watched(actor, LaneStatus(name, GroupCondition.STARTING)) for name, actor in actors.items()
        }

    def look(self) -> Mapping[str, LaneStatus]:
        """Returns what each lane told last."""
        for lane in self._lanes.values():
            if lane.asked is None:
                lane.asked_at, lane.asked = time.monotonic(), lane.actor.status.remote()
        asked = [lane.asked for lane in self._lanes.values()]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_WAIT_S)
        for name, lane in self._lanes.items():
            is_silent = lane.asked not in answered
            silent_s = lane.silence.look(is_so=is_silent, now=time.monotonic())
            if not is_silent:
                self._hear(name, lane)
            elif silent_s > self._silence_s:
                self._replace(name, lane)
        return {name: lane.status for name, lane in self._lanes.items()}

    def stop(self) -> None:
        """See Lanes."""
        for lane in self._lanes.values():
            lane.actor.stop.remote()

    def _hear(self, name: str, lane: _Watched) -> None:
        asked, lane.asked = lane.asked, None
        try:
            lane.status = replace(ray.get(asked), asked_at=lane.asked_at)
        except ray.exceptions.RayActorError as error:  # Ray starts its leader again
            lane.status = LaneStatus(name, GroupCondition.STARTING, reason=str(error).splitlines()[0])

    def _replace(self, name: str, lane: _Watched) -> None:
        log.error("lane is silent", extra={"lane": name, "seconds": self._silence_s})
        ray.kill(lane.actor, no_restart=False)
        lane.asked, lane.silence = None, Lasting()
        lane.status = LaneStatus(name, GroupCondition.STARTING, reason=f"said nothing for {self._silence_s:g} s")
