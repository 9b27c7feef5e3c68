"""Jobs without lanes, or with lanes that make nothing, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app.bulk.checking import check_all
from serve_app.bulk.identity import row_key
from serve_app.bulk.job import BulkJob, ExitCode, run
from serve_app.bulk.manifests.reading import find_manifest, read_manifest
from serve_app.bulk.row import BadRow
from serve_app.errors import AvatarError
from serve_app.jobs.admission import Fits
from serve_app.schemas.bulk import BulkConfig, BulkLimits
from tests.bulk.rows import PROMPT

LIMITS = BulkLimits(progress_every_s=1e-9, heartbeat_every_s=0.02, stale_after_s=5.0)


@dataclass
class NoLanes:
    """Lanes that know their model, and are never started."""

    error: AvatarError | None = None
    actors: dict[str, Any] = field(default_factory=dict)
    at_once: int = 1
    is_open: bool = False

    def model(self) -> str:
        if self.error is not None:
            raise self.error
        return "m"

    def start(self) -> None:
        raise AssertionError("there is nothing to render")

    @contextmanager
    def open(self, _: str, is_stopped: Callable[[], bool]) -> Iterator[NoLanes]:
        assert not is_stopped()
        self.is_open = True
        yield self


class Listener:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.plans: list[Any] = []
        self.states: list[Any] = []

    def planned(self, plan: Any) -> None:
        self.plans.append(plan)

    def progress(self, state: Any) -> None:
        self.states.append(state)


def a_row(custom_id: str, **changes: Any) -> dict[str, Any]:
    row = {"custom_id": custom_id, "image": "me.png", "audio": "voice.wav", "prompt": PROMPT, "size": "64*64"}
    return {**row, **changes}


def a_job(folder: Path, *rows: dict[str, Any], manifest: str = "rows.jsonl", **changes: Any) -> BulkJob:
    path = folder / manifest
    if rows:
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return BulkJob(
        source=find_manifest(str(path)),
        output=str(folder / "out"),
        config=BulkConfig(limits=LIMITS),
        judge=lambda work: Fits(work.num_frames / 25),
        num_groups=2,
        about={"manifest": manifest},
        **changes,
    )


def ran(
    job: BulkJob,
    *,
    lanes: NoLanes | None = None,
    listener: Listener | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> tuple[ExitCode, Any]:
    return run(job, (lanes or NoLanes()).open, listener=listener or Listener(), is_stopped=is_stopped)


def told(folder: Path, name: str) -> Any:
    text = (folder / "out" / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


def commit(folder: Path, job: BulkJob, *, model: str = "m") -> None:
    """Writes what a run leaves that has made every good row of a job."""
    for row in check_all(read_manifest(job.source), job.checker(Path(job.output)), num_threads=1):
        if isinstance(row, BadRow):
            continue
        place = folder / "out" / row.custom_id
        place.mkdir(parents=True)
        (place / "video.mp4").write_bytes(b"the video of " + row.custom_id.encode())
        (place / "result.json").write_text(json.dumps(a_result(row.custom_id, row_key(row.body_key, model=model))))


def a_result(custom_id: str, key: str) -> dict[str, Any]:
    about = {"num_frames": 30, "seconds": 1.2, "size": "64x64", "sha256": "5", "gpu_s": 1, "attempts": 1}
    return {"custom_id": custom_id, "row_key": key, "uri": "u", **about, "metadata": {}, "warnings": []}
