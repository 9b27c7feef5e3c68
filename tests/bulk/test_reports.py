"""Reports: what is told of a run, while it runs and at its end, wherever it is written."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk.manifests.reading import find_manifest, read_manifest
from serve_app.bulk.outcomes import Code, RowError
from serve_app.bulk.reports import Reports, check_not_overwritten
from serve_app.bulk.row import BadRow, Entry
from serve_app.errors import InvalidRequestError, OutputError, StorageError
from serve_app.storage.local_folder import LocalFolder
from tests.bulk.folders import Bucket, FrailFolder, names_in

RESULT = {
    "custom_id": "row",
    "row_key": "k1",
    "uri": "/out/row/video.mp4",
    "num_frames": 30,
    "seconds": 1.2,
    "size": "64x64",
    "sha256": "5" * 64,
    "gpu_s": 2.5,
    "attempts": 2,
    "metadata": {"campaign": "Frühling"},
    "warnings": [],
    "run_id": "r1",
}
ERROR = RowError(Code.INPUT_MISSING, "image is not there", "inputs")


@pytest.fixture
def out(tmp_path: Path) -> FrailFolder:
    return FrailFolder(tmp_path / "out")


def reports(folder: LocalFolder, tmp_path: Path) -> Reports:
    return Reports(folder, run_id="r1", spool=tmp_path / "spool")


def bad(number: int = 3, **row: Any) -> BadRow:
    return BadRow(number, {"custom_id": "b", **row}, "/in", ERROR, custom_id="b")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_step_and_every_end_is_a_line_at_once(out: LocalFolder, tmp_path: Path) -> None:
    with reports(out, tmp_path) as told:
        told.step("ordered", {"custom_id": "row", "group": "group-0"})
        told.done(RESULT)
        told.failed(bad())
        (step,) = lines(tmp_path / "out" / "ledger" / "r1.jsonl")
        (done,) = lines(tmp_path / "out" / "output.jsonl")
        (failed,) = lines(tmp_path / "out" / "errors.jsonl")
    assert (step["event"], step["custom_id"], step["group"]) == ("ordered", "row", "group-0")
    assert step["at"] > 1e9
    assert done == {name: value for name, value in RESULT.items() if name not in ("row_key", "run_id")}
    assert failed == {"custom_id": "b", "base": "/in", "line": 3, "error": ERROR.as_json()}


def test_the_error_report_is_a_manifest_again(out: LocalFolder, tmp_path: Path) -> None:
    row = {"image": "me.png", "audio": "voice.wav", "prompt": "Eine Frau spricht."}
    with reports(out, tmp_path) as told:
        told.failed(bad(**row))
    (read,) = read_manifest(find_manifest(str(tmp_path / "out" / "errors.jsonl")))
    assert isinstance(read, Entry)
    assert (read.custom_id, read.base, dict(read.fields)) == ("b", "/in", row)


def test_half_a_character_does_not_end_the_run(out: LocalFolder, tmp_path: Path) -> None:
    with reports(out, tmp_path) as told:
        told.failed(bad(prompt="grüßt \ud800 alle"))
        told.done({**RESULT, "metadata": {"note": "\udfff"}})
        told.step("failed", {"error": "\ud800"})
    assert "grüßt" in (tmp_path / "out" / "errors.jsonl").read_text(encoding="utf-8")
    assert lines(tmp_path / "out" / "errors.jsonl")[0]["prompt"] == "grüßt \ud800 alle"
    assert lines(tmp_path / "out" / "output.jsonl")[0]["metadata"] == {"note": "\udfff"}


def test_a_run_begins_its_reports_anew_and_keeps_the_ledgers_of_others(out: LocalFolder, tmp_path: Path) -> None:
    with Reports(out, run_id="r0", spool=tmp_path) as told:
        told.step("run began", {})
        told.failed(bad())
        told.done(RESULT)
    with reports(out, tmp_path):
        pass
    assert lines(tmp_path / "out" / "errors.jsonl") == []
    assert lines(tmp_path / "out" / "output.jsonl") == []
    assert len(lines(tmp_path / "out" / "ledger" / "r0.jsonl")) == 1


def test_progress_and_summary_are_replaced(out: LocalFolder, tmp_path: Path) -> None:
    with reports(out, tmp_path) as told:
        told.progress({"rows": 1})
        told.progress({"rows": 2})
        told.summary({"exit_code": 0})
    assert json.loads((tmp_path / "out" / "progress.json").read_text()) == {"rows": 2}
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == {"exit_code": 0}


def test_in_a_bucket_reports_grow_with_every_copy(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path / "bucket")
    with reports(bucket, tmp_path) as told:
        told.done(RESULT)
        assert names_in(tmp_path / "bucket") == []
        told.sync()
        assert len(lines(tmp_path / "bucket" / "output.jsonl")) == 1
        told.done(RESULT)
        told.failed(bad())
    assert len(lines(tmp_path / "bucket" / "output.jsonl")) == 2
    assert len(lines(tmp_path / "bucket" / "errors.jsonl")) == 1
    assert names_in(tmp_path / "bucket") == ["errors.jsonl", "ledger/r1.jsonl", "output.jsonl"]


def test_what_has_not_changed_is_not_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, copied = Bucket(tmp_path / "bucket"), list[str]()
    monkeypatch.setattr(bucket, "put", lambda _, name: copied.append(name))
    with reports(bucket, tmp_path) as told:
        told.sync()
        copied.clear()
        told.done(RESULT)
        told.sync()
    assert copied == ["output.jsonl"]


def test_a_bucket_that_is_away_for_a_while_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bucket = Bucket(tmp_path / "bucket")
    with reports(bucket, tmp_path) as told:
        bucket.broken = frozenset(["put", "write"])
        told.done(RESULT)
        with caplog.at_level(logging.WARNING):
            told.sync()
            told.progress({"rows": 1})
        bucket.broken = frozenset()
    assert [record.message for record in caplog.records] == ["reports not copied", "progress not written"]
    assert len(lines(tmp_path / "bucket" / "output.jsonl")) == 1


def test_a_bucket_that_stays_away_is_told_at_the_end(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path / "bucket")
    bucket.broken = frozenset(["put"])
    with pytest.raises(StorageError, match="put"), reports(bucket, tmp_path) as told:
        told.done(RESULT)


def test_what_failed_first_is_what_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bucket = Bucket(tmp_path / "bucket")
    bucket.broken = frozenset(["put"])
    with pytest.raises(ZeroDivisionError), reports(bucket, tmp_path):
        raise ZeroDivisionError
    assert [record.message for record in caplog.records] == ["reports not whole"]


def test_a_summary_that_cannot_be_written_is_an_error(out: FrailFolder, tmp_path: Path) -> None:
    with reports(out, tmp_path) as told:
        out.broken = frozenset(["write"])
        with pytest.raises(StorageError):
            told.summary({})


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no device that is full")
def test_a_disk_that_is_full_ends_the_run_and_says_what_to_do(out: LocalFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "output.jsonl").symlink_to("/dev/full")
    told_so = pytest.raises(OutputError, match=r"output\.jsonl. cannot be written: No space left.*what was done stays")
    with told_so, reports(out, tmp_path) as told:
        told.done(RESULT)
    assert lines(tmp_path / "out" / "errors.jsonl") == []


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        reports(LocalFolder(tmp_path / "out"), tmp_path)


def test_a_folder_that_is_another_run_s_is_left_alone(out: LocalFolder, tmp_path: Path) -> None:
    with reports(out, tmp_path) as told:
        told.let_go()
        told.step("abandoned", {})
        told.done(RESULT)
        told.failed(bad())
        told.progress({})
        told.summary({})
    assert names_in(tmp_path / "out") == ["errors.jsonl", "ledger/r1.jsonl", "output.jsonl"]
    assert lines(tmp_path / "out" / "output.jsonl") == lines(tmp_path / "out" / "errors.jsonl") == []
    assert len(lines(tmp_path / "out" / "ledger" / "r1.jsonl")) == 1


def test_a_bucket_that_is_another_run_s_gets_the_ledger_alone(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path / "bucket")
    with reports(bucket, tmp_path) as told:
        told.done(RESULT)
        told.let_go()
    assert names_in(tmp_path / "bucket") == ["ledger/r1.jsonl"]


@pytest.mark.parametrize("name", ["errors.jsonl", "output.jsonl"])
def test_a_manifest_that_the_run_would_write_over_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidRequestError, match=f"{name}.*that this run writes anew; run the manifest of before"):
        check_not_overwritten(LocalFolder(tmp_path), name, LocalFolder(tmp_path / "link"))
    with pytest.raises(InvalidRequestError):
        check_not_overwritten(Bucket(tmp_path), name, Bucket(tmp_path))


@pytest.mark.parametrize("report", ["errors.jsonl", "output.jsonl"])
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_manifest_that_is_a_report_under_another_name_is_refused(
    tmp_path: Path, report: str, link: Callable[[Path, Path], None]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / report).write_text("{}")
    link(tmp_path / "again.jsonl", out / report)
    with pytest.raises(InvalidRequestError, match=r"again\.jsonl.*that this run writes anew"):
        check_not_overwritten(LocalFolder(tmp_path), "again.jsonl", LocalFolder(out))


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_manifest_that_a_report_leads_to_is_refused(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "rows.jsonl").write_text("{}")
    link(tmp_path / "out" / "errors.jsonl", tmp_path / "rows.jsonl")
    with pytest.raises(InvalidRequestError, match=r"rows\.jsonl.*that this run writes anew"):
        check_not_overwritten(LocalFolder(tmp_path), "rows.jsonl", LocalFolder(tmp_path / "out"))


def test_a_copy_of_a_report_is_a_manifest(tmp_path: Path) -> None:
    for name in ("errors.jsonl", "again.jsonl"):
        (tmp_path / name).write_text("{}")
    check_not_overwritten(LocalFolder(tmp_path), "again.jsonl", LocalFolder(tmp_path))


@pytest.mark.parametrize(("name", "out"), [("rows.jsonl", "here"), ("errors.jsonl", "there")])
def test_other_manifests_may_stand_anywhere(tmp_path: Path, name: str, out: str) -> None:
    check_not_overwritten(LocalFolder(tmp_path / "here"), name, LocalFolder(tmp_path / out))
