"""The roll: groups as their leaders described them last, and which of them have fallen silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from serve_app.jobs.messages import GroupCondition, GroupReport

LONGEST_TICK_S = 2.0
"""What counts of the time between two ticks: while the Dispatcher itself is held up, it can hear nobody."""


@dataclass(frozen=True)
class _Member:
    report: GroupReport
    heard_at: float


@dataclass
class Roll:
    """All groups that told of themselves in the last `lost_after_s`; `tick` is called about once a second.

    `listened_s` counts the seconds in which reports were listened to, and silence is measured in these.
    """

    clock: Callable[[], float]
    lost_after_s: float
    listened_s: float = 0.0
    _members: dict[str, _Member] = field(default_factory=dict)
    _ticked_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._ticked_at = self.clock()

    @property
    def is_empty(self) -> bool:
        return not self._members

    def reports(self) -> list[GroupReport]:
        """Returns the newest report of every group."""
        return [member.report for member in self._members.values()]

    def find(self, group: str) -> GroupReport | None:
        """Returns the newest report of a group, None of one that is not there."""
        member = self._members.get(group)
        return None if member is None else member.report

    def note(self, told: GroupReport) -> None:
        """Takes a report; the last one of a group ends its membership."""
        if told.condition is GroupCondition.GONE:
            self._members.pop(told.group, None)
        else:
            self._members[told.group] = _Member(told, self.listened_s)

    def tick(self) -> list[str]:
        """Lets time pass, and takes out and returns the groups that have been silent for too long."""
        now = self.clock()
        self.listened_s += min(now - self._ticked_at, LONGEST_TICK_S)
        self._ticked_at = now
        silent = [name for name, member in self._members.items() if self._has_fallen_silent(member)]
        for name in silent:
            del self._members[name]
        return silent

    def _has_fallen_silent(self, member: _Member) -> bool:
        return self.listened_s - member.heard_at > self.lost_after_s
