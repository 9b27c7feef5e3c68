"""Whatever lanes do, every row ends once, and every video is told once."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.bulk.course import Ending
from serve_app.bulk.lanes.messages import RowOrder, RowReport
from serve_app.bulk.outcomes import Code
from serve_app.bulk.table import RowState
from serve_app.errors import UnavailableError
from serve_app.schemas.bulk import BulkLimits
from tests.bulk.rows import error
from tests.bulk.world import FAILED, READY, STARTING, Outcome, World, a_table, ended

FATES = ("made", "infra", "input", "brings down", "not begun", "lost", "twice", "late")
LIKELY = (10, 2, 1, 1, 1, 1, 1, 1)


class Fickle(World):
    """Lanes whose orders meet a fate by chance; groups come and go."""

    def __init__(self, chance: random.Random, *lanes: str, limits: BulkLimits) -> None:
        super().__init__(*lanes, outcome=self.meet, limits=limits)
        self.chance = chance

    def send(self, lane: str, order: RowOrder) -> None:
        if self.chance.choices(FATES, LIKELY)[0] == "lost":
            self.lanes[lane].lost.add(order.custom_id)
        super().send(lane, order)

    def meet(self, order: RowOrder) -> Outcome:
        match self.chance.choices(FATES, LIKELY)[0]:
            case "infra":
                return error(Code.TIMEOUT)
            case "input":
                return error(Code.INPUT_UNDECODABLE)
            case "brings down":
                self._restart(self.chance.choice(list(self.lanes)))
                return RowReport(0, 0, "", error=error(Code.RANK_DIED), has_brought_down=True, busy_s=1.0)
            case "not begun":
                return RowReport(0, 0, "", error=error(Code.NODE_LOST), is_begun=False)
            case "twice":
                self.after(self.chance.random() * 50, lambda: ended(order, self._any_lane(), None))
            case "late":
                late = error(Code.RANK_DIED)
                self.after(self.chance.random() * 50, lambda: ended(order, self._any_lane(), late))
        return None

    def _any_lane(self) -> str:
        return self.chance.choice(list(self.lanes))

    def _restart(self, lane: str) -> None:
        self.lanes[lane].condition = STARTING
        after = FAILED if self.chance.random() < 0.05 else READY
        self.after(self.chance.random() * 100, lambda: setattr(self.lanes[lane], "condition", after))


@given(
    seed=st.integers(0, 2**32),
    num_lanes=st.integers(1, 4),
    at_once=st.integers(1, 3),
    num_rows=st.integers(0, 25),
    stops_at_s=st.one_of(st.none(), st.floats(0, 60)),
)
@settings(max_examples=120, deadline=None)
def test_every_row_ends_once_and_every_video_is_told_once(
    seed: int, num_lanes: int, at_once: int, num_rows: int, stops_at_s: float | None
) -> None:
    chance = random.Random(seed)
    limits = BulkLimits(breaker_share=0.9, max_attempts=chance.randint(1, 4))
    world = Fickle(chance, *(f"lane-{number}" for number in range(num_lanes)), limits=limits)
    rows = {f"row-{number}": chance.uniform(1, 20) for number in range(num_rows)}
    with tempfile.TemporaryDirectory() as folder, a_table(Path(folder), rows) as table:
        course = world.course(table, at_once=at_once)
        try:
            ending = course.run(
                is_stopped=lambda: stops_at_s is not None and world.now > stops_at_s,
                on_look=lambda: None,
                more=lambda: False,
            )
        except UnavailableError:  # chance has ended every group
            return
        counts = table.counts()
    told = Counter([result["custom_id"] for result in world.results] + [row.custom_id for row in world.bad])
    assert set(told.values()) <= {1}
    assert (counts[RowState.DONE], counts[RowState.FAILED]) == (len(world.results), len(world.bad))
    assert counts[RowState.RUNNING] == 0
    assert sum(counts.values()) == num_rows
    if ending is Ending.FINISHED:
        assert set(told) == set(rows)
    assert most_attempts(world) <= limits.max_attempts


def most_attempts(world: World) -> int:
    return max((order.attempt for _, _, order in world.sent), default=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_long_job_on_fickle_lanes_comes_to_its_end(tmp_path: Path, seed: int) -> None:
    world = Fickle(random.Random(seed), "a", "b", "c", limits=BulkLimits(breaker_share=0.99))
    with a_table(tmp_path, {f"row-{number}": 1.0 + number % 17 for number in range(150)}) as table:
        course = world.course(table)
        try:
            assert course.run(is_stopped=lambda: False, on_look=lambda: None, more=lambda: False) is Ending.FINISHED
        except UnavailableError:
            assert all(lane.condition is FAILED for lane in world.lanes.values())
            return
        assert table.counts()[RowState.DONE] + table.counts()[RowState.FAILED] == 150
    assert course.tally.num_attempts >= 150
