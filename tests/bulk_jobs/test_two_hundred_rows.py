"""Two hundred rows, many of them bad, a killed rank, a killed driver: every good row is made, and made once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from tests.bulk_jobs.conftest import BulkRay, job, ledger, lines_of
from tests.bulk_jobs.manifests import mixed_rows, write_manifest

COUNT = 200


def results(out: Path) -> dict[str, tuple[float, bytes]]:
    """Returns what is committed: when it was written, and its words."""
    return {path.parent.name: (path.stat().st_mtime, path.read_bytes()) for path in out.glob("*/result.json")}


def test_every_good_row_is_made_once_whatever_is_killed(bulk_ray: BulkRay, folder: Path) -> None:
    rows, num_bad = mixed_rows(COUNT, bad_share=0.05)
    manifest, out = write_manifest(folder / "manifest.jsonl", rows), folder / "out"
    num_good = COUNT - sum(num_bad.values())
    with job(folder, bulk_ray, manifest, out=str(out)) as first:
        first.has_done(10)
        os.kill(bulk_ray.look()["ranks"][0], signal.SIGKILL)
        first.has_done(num_good // 2)
        first.process.kill()
    bulk_ray.until_empty()
    before = results(out)
    assert num_good // 2 <= len(before) < num_good
    with job(folder, bulk_ray, manifest, out=str(out)) as second:
        code, summary = second.end()
    check_all_is_told(out, code, summary, num_good, num_bad)
    after = results(out)
    assert {name: after[name] for name in before} == before
    check_nothing_was_made_twice(out, before=set(before))
    bulk_ray.until_empty()
    with job(folder, bulk_ray, manifest, out=str(out)) as third:
        code, summary = third.end()
    assert (code, summary["rows"]["skipped"], summary["attempts"]) == (3, num_good, 0)
    assert results(out) == after


def check_all_is_told(out: Path, code: int, summary: dict[str, Any], num_good: int, num_bad: dict[str, int]) -> None:
    rows = summary["rows"]
    assert (code, rows["total"], rows["done"] + rows["skipped"]) == (3, COUNT, num_good)
    assert (rows["failed"], rows["waiting"], rows["running"]) == (sum(num_bad.values()), 0, 0)
    assert summary["errors_by_code"] == num_bad
    errors = lines_of(out / "errors.jsonl")
    assert Counter(line["error"]["code"] for line in errors) == num_bad
    assert all(line["error"]["message"] and line["line"] for line in errors)
    assert {line["custom_id"] for line in lines_of(out / "output.jsonl")} == {
        path.parent.name for path in out.glob("*/video.mp4")
    }
    assert not list(out.glob("*/.*"))


def check_nothing_was_made_twice(out: Path, *, before: set[str]) -> None:
    """No row that a run had committed was rendered again, and none was committed by two attempts."""
    runs = sorted((out / "ledger").iterdir())
    steps = ledger(out)
    done = Counter(step["custom_id"] for step in steps if step["event"] == "done")
    assert set(done.values()) == {1}
    first, second = (lines_of(path) for path in runs[:2])
    assert not {step["custom_id"] for step in second if step["event"] == "ordered"} & before
    failed = [step["error"]["code"] for step in first if step["event"] == "failed"]
    assert failed == ["RANK_DIED"]
