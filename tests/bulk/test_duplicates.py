"""Ids that several rows have: wherever rows come from, no video is replaced by that of another row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk.checking import Checker, check_all
from serve_app.bulk.inputs import InputReader
from serve_app.bulk.manifests.reading import find_manifest, read_manifest, watch_manifest
from serve_app.bulk.plan import Plan, fill
from serve_app.bulk.row import BadRow, Entry
from serve_app.bulk.table import RowTable
from serve_app.jobs.admission import Fits
from serve_app.schemas.bulk import BulkConfig
from tests.bulk.rows import PROMPT, write_portrait, write_voice


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_portrait(tmp_path / "me.png")
    write_voice(tmp_path / "voice.wav")
    return tmp_path


def a_row(custom_id: str, **changes: Any) -> dict[str, Any]:
    row = {"custom_id": custom_id, "image": "me.png", "audio": "voice.wav", "prompt": PROMPT, "size": "64*64"}
    return {**row, **changes}


def a_manifest(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Run:
    """A run as far as it checks rows: `good` and `bad` are their numbers and ids, `errors` the lines of the report."""

    def __init__(self, table: RowTable) -> None:
        config = BulkConfig()
        self.checker = Checker(config, lambda _: Fits(1.0), InputReader(config, Path()), {})
        self.table = table
        self.plan = Plan()
        self.errors: list[dict[str, Any]] = []

    def take(self, rows: Iterable[Entry | BadRow]) -> None:
        checked = check_all(rows, self.checker, num_threads=2)
        fill(self.table, checked, self.plan, on_bad=lambda row: self.errors.append(row.as_json()))

    @property
    def good(self) -> list[tuple[int, str]]:
        rows = iter(lambda: self.table.take(now=0.0), None)
        return [(row.number, row.custom_id) for row in rows if row is not None]

    @property
    def bad(self) -> list[tuple[int, str, str]]:
        return [(line["line"], line["custom_id"], line["error"]["code"]) for line in self.errors]


NewRun = Callable[[], Run]


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[NewRun]:
    with ExitStack() as tables:
        yield lambda: Run(tables.enter_context(RowTable(tmp_path / "rows.sqlite3")))


def read(run: Run, path: Path) -> Run:
    run.take(read_manifest(find_manifest(str(path))))
    return run


@pytest.mark.parametrize(
    ("wrong", "code"), [({"promt": "A."}, "ROW_INVALID"), ({"image": "later.png"}, "INPUT_MISSING")]
)
def test_a_good_row_does_not_get_the_place_of_a_bad_one_before_it(
    folder: Path, new_run: NewRun, wrong: dict[str, str], code: str
) -> None:
    run = read(new_run(), a_manifest(folder / "rows.jsonl", [a_row("a", **wrong), a_row("A", seed=1), a_row("b")]))
    assert run.bad == [(1, "a", code), (2, "A", "DUPLICATE_ID")]
    assert run.good == [(3, "b")]


def test_a_report_that_was_mended_is_a_manifest_of_which_no_row_replaces_another(folder: Path, new_run: NewRun) -> None:
    run = read(new_run(), a_manifest(folder / "rows.jsonl", [a_row("a", image="later.png"), a_row("a", seed=1)]))
    write_portrait(folder / "later.png")
    again = read(new_run(), a_manifest(folder / "out" / "errors.jsonl", run.errors))
    assert (again.good, again.bad) == ([(1, "a")], [(2, "a", "DUPLICATE_ID")])
    mended = [run.errors[0], {**run.errors[1], "custom_id": "b"}]
    last = read(new_run(), a_manifest(folder / "out" / "errors.jsonl", mended))
    assert (last.good, last.bad) == ([(1, "a"), (2, "b")], [])


def test_a_task_file_that_was_bad_is_taken_under_its_name_by_the_next_watch(folder: Path, new_run: NewRun) -> None:
    task, path = {name: value for name, value in a_row("").items() if value}, folder / "task_1.json"
    path.write_text(json.dumps({**task, "image": "nowhere.png"}))
    first, watch = new_run(), watch_manifest(find_manifest(str(folder)))
    for content in (None, None, task, None, None):
        if content is not None:
            path.write_text(json.dumps(content))
        first.take(list(watch.poll()))
    assert (first.plan.num_rows, first.errors[0]["task_file"], first.good) == (1, "task_1.json", [])
    second, watch = new_run(), watch_manifest(find_manifest(str(folder)))
    for _ in range(2):
        second.take(list(watch.poll()))
    assert (second.good, second.errors) == ([(1, "task_1")], [])
