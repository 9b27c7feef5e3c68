"""Memory does not grow with the manifest: neither the driver's nor what Ray holds; a million rows are planned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bulk_jobs.conftest import ROOT, BulkRay, job
from tests.bulk_jobs.manifests import good_row, write_manifest

MIB = 2**20
MILLION = 1_000_000
MOST_BYTES = 1.5 * 2**30
MEASURED = """
import json, resource, sys
from serve_app.cli import main
code = main(sys.argv[1:])
print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "code": code}))
"""


def peaks(cluster: BulkRay, folder: Path, count: int) -> tuple[float, float]:
    """Returns the peaks of the driver's memory and of Ray's object store, in bytes, over a job of so many rows."""
    folder.mkdir()
    rows = [good_row(number, custom_id=f"row-{number}", image=str(folder.parent / "me.png")) for number in range(count)]
    voiced = [{**row, "audio": str(folder.parent / "voice_0.wav")} for row in rows]
    manifest = write_manifest(folder / "manifest.jsonl", voiced)
    stored: list[float] = [0.0]
    with job(folder, cluster, manifest, out=str(folder / "out")) as running:

        def note(told: dict[str, object]) -> bool:
            if "progress" in told:
                stored.append(cluster.look()["plasma_bytes"])
            return "peak_bytes" in told

        peak = running.until(note)["peak_bytes"]
        code, summary = running.process.wait(60), json.loads((folder / "out" / "summary.json").read_text())
    assert (code, summary["rows"]["done"]) == (0, count)
    return float(peak), max(stored)


def say(line: str) -> None:
    """Tells a figure; `pytest -s` and failures show it."""
    sys.stdout.write(f"{line}\n")


@pytest.mark.large
def test_memory_is_as_flat_over_five_hundred_rows_as_over_fifty(bulk_ray: BulkRay, folder: Path) -> None:
    few_driver, few_store = peaks(bulk_ray, folder / "few", 50)
    many_driver, many_store = peaks(bulk_ray, folder / "many", 500)
    figures = (few_driver, many_driver, few_store, many_store)
    say("driver {:.0f} and {:.0f} MiB, object store {:.0f} and {:.0f} MiB".format(*(one / MIB for one in figures)))
    assert many_driver < few_driver + 40 * MIB
    assert many_store <= few_store + 2 * MIB


@pytest.mark.large
@pytest.mark.timeout(3000)
def test_a_million_rows_are_validated_and_planned_in_little_memory(folder: Path) -> None:
    row = good_row(0)
    with (folder / "manifest.jsonl").open("w") as file:
        for number in range(MILLION):
            changes = {"custom_id": f"row-{number}", "audio": f"voice_{number % 8}.wav", "seed": number}
            file.write(json.dumps({**row, **changes}) + "\n")
    command = [sys.executable, "-c", MEASURED, "bulk", "validate", str(folder / "manifest.jsonl")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2900, check=True)
    plan, _, measured = ended.stdout.strip().rpartition("\n")
    told = json.loads(measured)
    say(f"{MILLION} rows: {told['peak_bytes'] / MIB:.0f} MiB")
    assert (json.loads(plan)["good"], told["code"]) == (MILLION, 0)
    assert told["peak_bytes"] < MOST_BYTES
