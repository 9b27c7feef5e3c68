"""The table of rows: their order, their states, and sums that cost nothing."""

from __future__ import annotations

import sqlite3
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve_app.bulk.table import RowState, RowTable, TableRow
from serve_app.errors import OutputError
from tests.bulk.rows import planned

MIB = 1 << 20


@pytest.fixture
def table(tmp_path: Path) -> Iterator[RowTable]:
    with RowTable(tmp_path / "rows.sqlite3") as opened:
        yield opened


def taken(table: RowTable, *, now: float = 0.0) -> list[str]:
    rows = iter(lambda: table.take(now=now), None)
    return [row.custom_id for row in rows if row is not None]


def take(table: RowTable, *, now: float = 0.0) -> TableRow:
    row = table.take(now=now)
    assert row is not None
    return row


def test_the_longest_row_comes_first_and_equals_in_their_order(table: RowTable) -> None:
    for number, (name, seconds) in enumerate([("b", 1.0), ("c", 9.0), ("a", 1.0), ("d", 2.0)], start=1):
        table.add(planned(name, number=number, predicted_s=seconds))
    assert list(table.predicted()) == [9.0, 2.0, 1.0, 1.0]
    assert taken(table) == ["c", "d", "b", "a"]
    assert list(table.predicted()) == []


def test_a_row_comes_back_as_it_was_put_in(table: RowTable) -> None:
    put = planned("row", number=7, spec={"prompt": "Ein Mönch, 😀", "seed": 3}, archive_name="Name")
    table.add(put)
    row = take(table)
    assert (row.number, row.spec, row.origin, row.archive_name) == (7, put.spec, put.origin, "Name")
    assert (row.body_key, row.predicted_s, row.num_frames) == (put.body_key, 1.0, 25)
    assert (row.attempts, row.brought_down) == (1, 0)


@pytest.mark.parametrize("name", ["Row-1", "row-1", "ROW-1"])
def test_an_id_that_is_taken_is_refused_whatever_its_letters(table: RowTable, name: str) -> None:
    assert table.add(planned("Row-1", number=4)) is None
    assert table.add(planned(name, number=9)) == 4
    assert table.counts()[RowState.PENDING] == 1


def test_a_name_in_the_archive_that_is_taken_is_refused(table: RowTable) -> None:
    assert table.add(planned("a", number=1, archive_name="Spring")) is None
    assert table.add(planned("b", number=2, archive_name="spring")) == 1
    assert table.add(planned("c", number=3)) is None
    assert table.add(planned("d", number=4)) is None


@pytest.mark.parametrize("name", ["Row-1", "row-1", "ROW-1"])
def test_the_id_of_a_bad_row_is_not_given_to_another(table: RowTable, name: str) -> None:
    table.refuse("Row-1", number=4)
    table.refuse("row-1", number=5)
    assert table.add(planned(name, number=9)) == 4
    assert table.add(planned("row-2", number=10)) is None
    assert table.counts()[RowState.PENDING] == 1


def test_rows_that_are_refused_leave_nothing_behind(table: RowTable) -> None:
    for number in range(1, 2_001):
        table.add(planned(f"row-{number // 2}", number=number, archive_name=f"name-{number // 3}"))
    assert table._rows.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert table.counts()[RowState.PENDING] == len(taken(table))


def test_a_process_that_is_killed_leaves_no_table(tmp_path: Path) -> None:
    (tmp_path / "rows.sqlite3").write_bytes(b"no database at all")
    with RowTable(tmp_path / "rows.sqlite3") as table:
        for number in range(3_000):
            table.add(planned(f"row-{number}", number=number, spec={"prompt": "x" * 1_000}))
        assert list(tmp_path.iterdir()) == []
        assert len(taken(table)) == 3_000


def test_a_row_that_shall_wait_is_not_due_before_its_time(table: RowTable) -> None:
    table.add(planned("a"))
    row = take(table)
    table.try_again(row.seq, due_at=50.0, has_brought_down=True)
    assert table.has_waiting()
    assert table.take(now=49.9) is None
    again = take(table, now=50.0)
    assert (again.attempts, again.brought_down) == (2, 1)


def test_a_row_that_is_handed_back_has_lost_no_attempt(table: RowTable) -> None:
    table.add(planned("a"))
    for _ in range(3):
        row = take(table, now=1.0)
        assert row.attempts == 1
        table.hand_back(row.seq, due_at=1.0)


def test_a_row_that_is_not_due_does_not_hold_up_the_others(table: RowTable) -> None:
    table.add(planned("long", predicted_s=9.0))
    table.add(planned("short", predicted_s=1.0))
    table.try_again(take(table).seq, due_at=100.0, has_brought_down=False)
    assert taken(table, now=1.0) == ["short"]


def test_only_a_row_that_waits_is_found(table: RowTable) -> None:
    table.add(planned("Row"))
    found = table.find_pending("Row")
    assert found is not None
    assert found.attempts == 0
    assert table.find_pending("row") is None
    assert table.find_pending("other") is None
    table.end(found.seq, RowState.SKIPPED)
    assert table.find_pending("Row") is None


def test_rows_that_run_count_as_work_and_ended_ones_do_not(table: RowTable) -> None:
    for name, seconds in (("a", 3.0), ("b", 2.0), ("c", 1.0)):
        table.add(planned(name, predicted_s=seconds))
    first = take(table)
    assert table.work() == (6.0, 75)
    table.end(first.seq, RowState.DONE)
    assert table.work() == (3.0, 50)
    assert [table.has_waiting(more_than=count) for count in (0, 1, 2)] == [True, True, False]


def test_a_disk_that_is_full_is_told_with_what_to_do(table: RowTable) -> None:
    page = table._rows.execute("PRAGMA page_count").fetchone()[0]
    table._rows.execute(f"PRAGMA max_page_count = {page + 4}")
    with pytest.raises(OutputError, match=r"rows\.sqlite3.* full; .*TMPDIR"):
        any(table.add(planned(f"row-{number}", number=number)) for number in range(1_000))
    with pytest.raises(OutputError, match="full"):
        any(table.refuse(f"bad-{number}-{'x' * 50}", number=number) for number in range(10_000))


def test_many_rows_take_no_memory(table: RowTable) -> None:
    tracemalloc.start()
    for number in range(2_000):
        table.add(planned(f"row-{number}", number=number))
        table.refuse(f"bad-{number}", number=number)
    taken_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken_bytes < MIB / 4


@pytest.mark.parametrize("ask", [RowTable.counts, RowTable.work, RowTable.has_waiting])
def test_what_is_asked_all_the_time_does_not_ask_the_database(
    table: RowTable, ask: Callable[[RowTable], object]
) -> None:
    asked: list[str] = []
    table.add(planned())
    table._rows.set_trace_callback(asked.append)
    ask(table)
    assert asked == []


class Sums(RuleBasedStateMachine):
    """Whatever becomes of rows, the sums are those of the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.table = RowTable(Path(self.folder.name) / "rows.sqlite3")
        self.running: list[TableRow] = []
        self.number = 0

    @rule(seconds=st.floats(0.1, 100), is_taken=st.booleans())
    def add(self, seconds: float, is_taken: bool) -> None:
        self.number += 1
        name = "row-1" if is_taken else f"row-{self.number}"
        self.table.add(planned(name, number=self.number, predicted_s=seconds, num_frames=self.number))

    @rule()
    def take(self) -> None:
        row = self.table.take(now=1.0)
        if row is not None:
            self.running.append(row)

    @precondition(lambda self: self.running)
    @rule(state=st.sampled_from([RowState.DONE, RowState.FAILED]))
    def end(self, state: RowState) -> None:
        self.table.end(self.running.pop().seq, state)

    @precondition(lambda self: self.running)
    @rule(is_late=st.booleans(), brings_down=st.booleans())
    def try_again(self, is_late: bool, brings_down: bool) -> None:
        row = self.running.pop()
        self.table.try_again(row.seq, due_at=2.0 if is_late else 0.0, has_brought_down=brings_down)

    @precondition(lambda self: self.running)
    @rule()
    def hand_back(self) -> None:
        self.table.hand_back(self.running.pop().seq, due_at=0.0)

    @invariant()
    def sums_are_those_of_the_rows(self) -> None:
        rows: list[sqlite3.Row] = self.table._rows.execute("SELECT state, predicted_s, num_frames FROM rows").fetchall()
        left = [row for row in rows if row["state"] in ("pending", "running")]
        assert self.table.counts() == {state: Counter(row["state"] for row in rows)[state] for state in RowState}
        seconds, frames = self.table.work()
        assert seconds == pytest.approx(sum(row["predicted_s"] for row in left), abs=1e-6)
        assert frames == sum(row["num_frames"] for row in left)

    def teardown(self) -> None:
        self.table.__exit__(None, None, None)
        self.folder.cleanup()


TestSums = Sums.TestCase
TestSums.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
