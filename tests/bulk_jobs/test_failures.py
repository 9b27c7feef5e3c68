"""What goes wrong in a job is told by row, tried again where that may help, and stops the job where it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bulk_jobs.conftest import END_S, ROOT, BulkRay, job, ledger, lines_of
from tests.bulk_jobs.manifests import good_row, write_manifest, write_voice

LONG_S = 8.0
"""Of a voice: with ten steps some seven seconds of work by the cost table."""


def bulk(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve_app.cli", "bulk", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def attempts_of(out: Path, custom_id: str) -> list[str]:
    """Returns how each attempt of a row ended, by code."""
    steps = [step for step in ledger(out) if step.get("custom_id") == custom_id and "error" in step]
    return ["done" if step["error"] is None else step["error"]["code"] for step in steps]


def test_each_kind_of_failure_has_its_code_and_its_attempts(bulk_ray: BulkRay, folder: Path) -> None:
    acts = {
        "dies": "act:die always",
        "died-once": f"act:die once:{folder / 'died'}",
        "nan-once": f"act:nan once:{folder / 'nan'}",
        "raises": "act:raise always",
        "hangs": "act:hang always",
    }
    rows = [good_row(number, custom_id=name, prompt=prompt) for number, (name, prompt) in enumerate(acts.items())]
    manifest = write_manifest(folder / "manifest.jsonl", [*rows, *(good_row(number) for number in range(10, 20))])
    limits = {"breaker_share": 0.99}
    gang = {"first_block_s": 2.0, "least_progress_s": 2.0}
    with job(folder, bulk_ray, manifest, out=str(folder / "out"), groups=2, limits=limits, gang=gang) as running:
        code, summary = running.end()
    out = folder / "out"
    assert (code, summary["rows"]["done"], summary["rows"]["failed"]) == (3, 12, 3)
    assert {name: attempts_of(out, name) for name in acts} == {
        "dies": ["RANK_DIED"] * 2,  # two groups are enough
        "died-once": ["RANK_DIED", "done"],
        "nan-once": ["NAN_LATENT", "done"],
        "raises": ["INTERNAL"] * 2,
        "hangs": ["BLOCK_STALL"] * 2,
    }
    errors = {line["custom_id"]: line for line in lines_of(out / "errors.jsonl")}
    assert errors["raises"]["error"]["retryable"]
    assert "a bug of the program" in Path(errors["raises"]["error"]["log_uri"]).read_text()
    assert summary["gpu_s"]["retried"] > 0
    results = {line["custom_id"]: line["attempts"] for line in lines_of(out / "output.jsonl")}
    assert (results["died-once"], results["row-010"]) == (2, 1)


def test_a_broken_fleet_pauses_the_job_and_the_rest_waits(bulk_ray: BulkRay, folder: Path) -> None:
    rows: list[Any] = [good_row(number, prompt="act:nan always") for number in range(30)]
    manifest = write_manifest(folder / "manifest.jsonl", rows)
    limits = {"breaker_window": 4, "max_attempts": 1}
    with job(folder, bulk_ray, manifest, out=str(folder / "out"), groups=2, limits=limits) as running:
        code, summary = running.end()
    assert (code, summary["state"]) == (5, "broken")
    assert 4 <= summary["rows"]["failed"] <= 8
    assert summary["rows"]["waiting"] == 30 - summary["rows"]["failed"]


def test_a_job_is_cancelled_by_another_process_and_continued(bulk_ray: BulkRay, folder: Path) -> None:
    write_voice(folder / "long.wav", LONG_S)
    rows = [good_row(number, audio="long.wav", sample_steps=10) for number in range(3)]
    manifest, out = write_manifest(folder / "manifest.jsonl", [*rows, good_row(3)]), folder / "out"
    with job(folder, bulk_ray, manifest, out=str(out), groups=2) as running:
        running.until(lambda told: "progress" in told and told["progress"]["rows"]["running"] > 0)
        told = json.loads(bulk("status", str(out)).stdout)
        assert told["state"] == "running"
        where = ["--out", str(out), "--address", bulk_ray.address]
        second = bulk("run", str(manifest), *where, **bulk_ray.environment)
        assert (second.returncode, "another job" in second.stderr) == (2, True), second.stderr
        assert bulk("cancel", str(out)).returncode == 0
        code, summary = running.end()
    rows = summary["rows"]
    assert (code, rows["failed"], rows["done"] + rows["waiting"]) == (4, 0, 4)
    assert rows["waiting"] > 0
    bulk_ray.until_empty()
    assert bulk("cancel", str(out)).returncode == 2
    with job(folder, bulk_ray, manifest, out=str(out), groups=2) as running:
        code, summary = running.end()
    assert (code, summary["rows"]["done"] + summary["rows"]["skipped"]) == (0, 4)
    assert json.loads(bulk("report", str(out)).stdout)["state"] == "all_good"


@pytest.mark.parametrize("is_killed", [False, True], ids=["cancelled", "terminated"])
def test_a_job_whose_groups_wait_for_a_place_can_be_stopped(
    bulk_ray: BulkRay, folder: Path, *, is_killed: bool
) -> None:
    manifest, out = write_manifest(folder / "manifest.jsonl", [good_row(0)]), folder / "out"
    too_much = {"leader_cpus": 1000.0}
    with job(folder, bulk_ray, manifest, out=str(out), groups=1, pool_changes=too_much) as running:
        running.until(lambda told: "planned" in told)
        if is_killed:
            running.process.terminate()
        else:
            assert bulk("cancel", str(out)).returncode == 0
        code, summary = running.end()
    assert (code, summary["state"], summary["rows"]["waiting"]) == (4, "cancelled", 1)
    assert json.loads(bulk("report", str(out)).stdout) == summary


def test_a_job_whose_groups_find_no_place_has_a_status_that_tells_why_and_no_report(
    bulk_ray: BulkRay, folder: Path
) -> None:
    manifest, out = write_manifest(folder / "manifest.jsonl", [good_row(0)]), folder / "out"
    too_much, gang = {"leader_cpus": 1000.0}, {"placement_s": 0.5}
    with job(folder, bulk_ray, manifest, out=str(out), groups=1, pool_changes=too_much, gang=gang) as running:
        assert running.process.wait(END_S) == 1
    told = json.loads(bulk("status", str(out)).stdout)
    assert told["state"] == "failed"
    assert "no place within 0.5 s" in told["error"]
    report = bulk("report", str(out))
    assert (report.returncode, "has not come to its end" in report.stderr) == (2, True)


def test_a_driver_that_was_killed_is_told_of(bulk_ray: BulkRay, folder: Path) -> None:
    manifest, out = write_manifest(folder / "manifest.jsonl", [good_row(0)]), folder / "out"
    with job(folder, bulk_ray, manifest, out=str(out), groups=1, pool_changes={"leader_cpus": 1000.0}) as running:
        running.until(lambda told: "planned" in told)
        running.process.kill()
        running.process.wait(END_S)
    status = bulk("status", str(out))
    assert (status.returncode, json.loads(status.stdout)["state"]) == (0, "gone")
    assert "nobody works on this job any more" in status.stderr


def test_a_watch_takes_what_comes_until_it_is_stopped(bulk_ray: BulkRay, folder: Path) -> None:
    queue, out = folder / "task_queue", folder / "out"
    queue.mkdir()
    task = {
        "image": str(folder / "me.png"),
        "audio": str(folder / "voice_0.wav"),
        "prompt": "A person talks to us now.",
    }
    (queue / "task_001.json").write_text(json.dumps({**task, "size": "64*64"}))
    with job(folder, bulk_ray, queue, out=str(out), groups=1, watch=True, limits={"watch_every_s": 0.1}) as running:
        running.has_done(1)
        (queue / "task_002.json").write_text(json.dumps({**task, "size": "128*64"}))
        running.has_done(2)
        running.process.terminate()
        code, summary = running.end()
    assert (code, summary["rows"]["done"]) == (0, 2)
    assert {path.name for path in out.glob("task_*")} == {"task_001", "task_002"}


def test_rows_that_changed_are_made_again_and_only_they(bulk_ray: BulkRay, folder: Path) -> None:
    rows: list[Any] = [good_row(number) for number in range(3)]
    manifest, out = write_manifest(folder / "manifest.jsonl", rows), folder / "out"
    with job(folder, bulk_ray, manifest, out=str(out), groups=1) as running:
        assert running.end()[0] == 0
    before = {path.parent.name: path.read_bytes() for path in out.glob("*/result.json")}
    write_manifest(manifest, [rows[0], {**rows[1], "seed": 99}, rows[2]])
    with job(folder, bulk_ray, manifest, out=str(out), groups=1) as running:
        code, summary = running.end()
    assert (code, summary["rows"]["done"], summary["rows"]["skipped"]) == (0, 1, 2)
    after = {path.parent.name: path.read_bytes() for path in out.glob("*/result.json")}
    assert {name for name in after if after[name] != before[name]} == {"row-001"}
