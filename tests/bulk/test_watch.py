"""Lanes that are asked what they do: who is silent is replaced, and a driver that was held up blames nobody."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import ray

from serve_app.bulk.lanes import watch
from serve_app.bulk.lanes.messages import LaneStatus
from serve_app.bulk.lanes.watch import LaneWatch
from serve_app.jobs.messages import GroupCondition

READY, STARTING = GroupCondition.READY, GroupCondition.STARTING


@dataclass
class Lane:
    """A leader that answers after so many looks; infinite: never. Each answer has the number of its question."""

    after_looks: float = 0
    error: Exception | None = None
    num_asked: int = 0
    kills: list[bool] = field(default_factory=list)

    @property
    def status(self) -> Lane:
        return self

    def remote(self) -> Answer:
        self.num_asked += 1
        return Answer(self, self.num_asked, self.after_looks)


@dataclass(eq=False)
class Answer:
    of: Lane
    number: int
    looks_left: float


class FakeRay:
    """As much of Ray, and of `time`, as a watch needs; 50 ms go by for whoever waits."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, asked: list[Answer], *, num_returns: int, timeout: float) -> tuple[list[Answer], list[Answer]]:
        assert num_returns == len(asked)
        self.now += timeout
        answered = [answer for answer in asked if answer.looks_left <= 0]
        for answer in asked:
            answer.looks_left -= 1
        return answered, []

    def get(self, answer: Answer) -> LaneStatus:
        if answer.of.error is not None:
            raise answer.of.error
        return LaneStatus("a", READY, num_restarts=answer.number)

    def kill(self, actor: Lane, *, no_restart: bool) -> None:
        actor.kills.append(no_restart)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(watch, "ray", fake)
    monkeypatch.setattr(watch, "time", fake)
    return fake


def looked(fake: FakeRay, lanes: LaneWatch, *, seconds: float, every_s: float = 0.5) -> Any:
    """Looks for so long in the rhythm of a driver; returns what was told last."""
    until, told = fake.now + seconds, lanes.look()
    while fake.now < until:
        fake.now += every_s - 0.05
        told = lanes.look()
    return told


@pytest.mark.usefixtures("fake")
def test_what_a_lane_tells_comes_with_when_it_was_asked() -> None:
    told = LaneWatch({"a": Lane()}, silence_s=60.0).look()
    assert (told["a"].condition, told["a"].asked_at) == (READY, 1000.0)


@pytest.mark.usefixtures("fake")
def test_a_lane_that_has_not_answered_yet_is_not_asked_again() -> None:
    lane = Lane(after_looks=2)
    lanes = LaneWatch({"a": lane}, silence_s=60.0)
    assert [lanes.look()["a"].num_restarts for _ in range(6)] == [0, 0, 1, 1, 1, 2]
    assert lane.num_asked == 2


def test_a_lane_that_is_silent_too_long_is_replaced_and_asked_anew(fake: FakeRay) -> None:
    mute, other = Lane(after_looks=float("inf")), Lane()
    lanes = LaneWatch({"mute": mute, "other": other}, silence_s=60.0)
    looked(fake, lanes, seconds=59)
    assert mute.kills == []
    told = looked(fake, lanes, seconds=3)
    assert (mute.kills, other.kills) == ([False], [])
    assert (told["mute"].condition, told["mute"].reason) == (STARTING, "said nothing for 60 s")
    assert (told["other"].condition, mute.num_asked) == (READY, 2)
    looked(fake, lanes, seconds=56)
    assert mute.kills == [False]


def test_a_driver_that_was_held_up_does_not_blame_lanes_that_are_well(fake: FakeRay) -> None:
    lane = Lane()
    lanes = LaneWatch({"a": lane}, silence_s=60.0)
    lanes.look()
    lane.after_looks = 1  # it needs longer than a look lasts
    fake.now += 300
    lanes.look()
    assert lanes.look()["a"].num_restarts == 2
    assert lane.kills == []


def test_a_driver_that_was_held_up_while_it_waited_for_an_answer_blames_nobody_either(fake: FakeRay) -> None:
    lane = Lane(after_looks=2)
    lanes = LaneWatch({"a": lane}, silence_s=60.0)
    lanes.look()
    fake.now += 300
    lanes.look()
    assert lanes.look()["a"].condition is READY
    assert lane.kills == []


@pytest.mark.usefixtures("fake")
def test_a_leader_that_died_is_starting_again() -> None:
    lane = Lane(error=ray.exceptions.RayActorError(error_msg="it died\nof something"))
    lanes = LaneWatch({"a": lane}, silence_s=60.0)
    told = lanes.look()
    assert (told["a"].condition, "\n" in told["a"].reason) == (STARTING, False)
    lane.error = None
    assert lanes.look()["a"].condition is READY
