"""Manifests as a whole: of any length in little memory, and made of the report of another."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from serve_app.bulk.manifests.reading import find_manifest, read_manifest
from serve_app.bulk.row import BadRow, Entry

MIB = 1 << 20
NUM_TRACED = 5_000


@pytest.mark.parametrize(("ending", "num_rows"), [(".jsonl", 200_000), (".csv", 50_000)])
def test_rows_are_read_without_being_held(tmp_path: Path, ending: str, num_rows: int) -> None:
    path = tmp_path / f"rows{ending}"
    row = {"custom_id": "row-0000000", "image": "me.png", "audio": "voice.wav", "prompt": "A woman talks." * 10}
    text = json.dumps(row) if ending == ".jsonl" else ",".join(row.values())
    with path.open("w") as file:
        file.write("" if ending == ".jsonl" else ",".join(row) + "\n")
        file.writelines(text.replace("0000000", f"{number:07}") + "\n" for number in range(num_rows))
    rows = read_manifest(find_manifest(str(path)))
    peak_bytes = traced(rows, NUM_TRACED)
    assert sum(isinstance(one, Entry) for one in islice(rows, num_rows - 2 * NUM_TRACED)) == num_rows - 2 * NUM_TRACED
    assert path.stat().st_size > num_rows * 150
    assert max(peak_bytes, traced(rows, NUM_TRACED)) < MIB / 2
    assert next(rows, None) is None


def traced(rows: Iterator[Entry | BadRow], num_rows: int) -> int:
    """Reads some rows, and returns the most memory that they took at once; tracing is slow, so only some."""
    tracemalloc.start()
    try:
        assert sum(isinstance(one, Entry) for one in islice(rows, num_rows)) == num_rows
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_ends_with_whoever_reads(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"custom_id": "a"}\n' * 3)
    rows = read_manifest(find_manifest(str(path)))
    assert next(rows).custom_id == "a"
    rows.close()  # type: ignore[attr-defined]
    assert list(rows) == []


def test_a_report_is_a_manifest_of_what_was_refused(tmp_path: Path) -> None:
    manifest, report = tmp_path / "jobs" / "rows.jsonl", tmp_path / "results" / "errors.jsonl"
    for path in (manifest, report):
        path.parent.mkdir()
    manifest.write_bytes(b'{"custom_id": "a", "promt": "A."}\n{half\n{"custom_id": "c", "image": "me.png"}\n')
    first = [row for row in read_manifest(find_manifest(str(manifest))) if isinstance(row, BadRow)]
    report.write_text("".join(json.dumps(row.as_json()) + "\n" for row in first).replace("promt", "prompt"))
    again = list(read_manifest(find_manifest(str(report))))
    assert [(row.number, row.base) for row in again] == [(1, str(manifest.parent)), (2, str(manifest.parent))]
    fixed, still_bad = again
    assert isinstance(fixed, Entry)
    assert fixed.fields == {"prompt": "A."}
    assert isinstance(still_bad, BadRow)
    assert still_bad.as_json()["base"] == str(manifest.parent)
