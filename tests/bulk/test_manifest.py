"""Manifests as a whole: of any length in little memory, and from a bucket as from a disk."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from serve_app.bulk.manifest import find_manifest, read_manifest
from serve_app.bulk.manifest_files import ManifestFile
from serve_app.bulk.manifest_folders import AudioFolder, TaskFolder
from serve_app.bulk.row import BadRow, Entry
from serve_app.storage.base import Folder, Listed, Stored

MIB = 1 << 20
NUM_ROWS = 200_000
NUM_TRACED = 5_000
TASK = b'{"image": "me.png", "audio": "voice.wav", "prompt": "A woman talks."}'


class Bucket:
    """A prefix of a bucket, as far as manifests are read."""

    def __init__(self, **files: bytes) -> None:
        self._files = {name.replace("__", "."): content for name, content in files.items()}

    def uri(self, name: str = "") -> str:
        return f"s3://bucket/jobs/{name}".removesuffix("/")

    def list(self, prefix: str = "") -> Iterator[Listed]:
        return (Listed(one, len(self._files[one]), "1") for one in sorted(self._files) if one.startswith(prefix))

    def read(self, name: str) -> Stored | None:
        return Stored(self._files[name], "1") if name in self._files else None

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self._files[name])


def bucket(**files: bytes) -> Folder:
    return cast("Folder", Bucket(**files))


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_two_hundred_thousand_rows_take_no_memory(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    row = {"custom_id": "row-0000000", "image": "me.png", "audio": "voice.wav", "prompt": "A woman talks." * 10}
    text = json.dumps(row) if ending == ".jsonl" else ",".join(row.values())
    with path.open("w") as file:
        file.write("" if ending == ".jsonl" else ",".join(row) + "\n")
        file.writelines(text.replace("0000000", f"{number:07}") + "\n" for number in range(NUM_ROWS))
    rows = read_manifest(find_manifest(str(path)))
    peak_bytes = traced(rows, NUM_TRACED)
    assert sum(isinstance(one, Entry) for one in islice(rows, NUM_ROWS - 2 * NUM_TRACED)) == NUM_ROWS - 2 * NUM_TRACED
    assert path.stat().st_size > 30 * MIB
    assert max(peak_bytes, traced(rows, NUM_TRACED)) < 2 * MIB
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


def test_a_file_in_a_bucket_is_read_as_one_on_a_disk() -> None:
    folder = bucket(rows__csv=b"custom_id,image,base\na,me.png,\nb,me.png,in\nc,me.png,s3://other/in\n")
    rows = list(read_manifest(ManifestFile(folder, "rows.csv")))
    assert [row.base for row in rows] == ["s3://bucket/jobs", "s3://bucket/jobs/in", "s3://other/in"]


def test_task_files_in_a_bucket_are_rows() -> None:
    (row,) = read_manifest(TaskFolder(bucket(task_1__json=TASK, me__png=b"a portrait")))
    assert (row.custom_id, row.base) == ("task_1", "s3://bucket/jobs")


def test_sounds_in_a_bucket_are_paired_with_portraits_there() -> None:
    folder = bucket(anna__wav=b"a voice", anna__png=b"a portrait")
    (row,) = read_manifest(AudioFolder(folder, folder, "{stem}_avatar", {"prompt": "A woman talks."}))
    assert isinstance(row, Entry)
    assert (row.custom_id, row.fields["image"], row.fields["audio"]) == (
        "anna_avatar",
        "s3://bucket/jobs/anna.png",
        "s3://bucket/jobs/anna.wav",
    )


def test_a_report_is_a_manifest_of_what_was_refused(tmp_path: Path) -> None:
    manifest, report = tmp_path / "jobs" / "rows.jsonl", tmp_path / "results" / "errors.jsonl"
    for path in (manifest, report):
        path.parent.mkdir()
    manifest.write_bytes(b'{"custom_id": "a", "promt": "A."}\n{half\n{"custom_id": "c", "image": "me.png"}\n')
    first = [row for row in read_manifest(find_manifest(str(manifest))) if isinstance(row, BadRow)]
    report.write_text("".join(json.dumps(row.as_json()) + "\n" for row in first).replace("promt", "prompt"))
    again = list(read_manifest(find_manifest(str(report))))
    assert [(row.number, row.base) for row in again] == [(1, str(manifest.parent)), (2, str(report.parent))]
    fixed, still_bad = again
    assert isinstance(fixed, Entry)
    assert fixed.fields == {"prompt": "A."}
    assert isinstance(still_bad, BadRow)
    assert still_bad.as_json()["base"] == str(manifest.parent)
