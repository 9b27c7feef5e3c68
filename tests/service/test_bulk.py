"""Rows of a manifest by the running service, as class bulk, beside what is asked for over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.end_to_end.conftest import environment
from tests.service.conftest import PROMPT, READY_S, Server, portrait, voice


def bulk(server: Server, folder: Path, cache: Path, *given: str) -> subprocess.CompletedProcess[str]:
    flags = [
        "bulk",
        "run",
        "manifest.jsonl",
        "--out=out",
        "--pool=serve",
        f"--url=http://127.0.0.1:{server.port}",
        *given,
    ]
    return subprocess.run(
        [sys.executable, "-m", "serve_app.cli", *flags],
        cwd=folder,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=2 * READY_S,
        check=False,
    )


def write_manifest(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "me.png").write_bytes(portrait())
    Image.new("RGB", (1280, 720), "gray").save(folder / "large.png")
    (folder / "voice.wav").write_bytes(voice(1.0))
    common = {"image": "me.png", "audio": "voice.wav", "prompt": PROMPT, "size": "64*64"}
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps({**common, **row})}\n" for row in rows))


def test_rows_are_made_by_the_service_and_only_once(server: Server, tmp_path: Path, cache: Path) -> None:
    rows: list[dict[str, Any]] = [{"custom_id": f"row-{seed}", "seed": seed} for seed in range(3)]
    write_manifest(tmp_path, [*rows, {"custom_id": "large", "size": "1280*720", "image": "large.png"}])
    before = {video["id"] for video in server.client.get("/v1/videos", params={"limit": 100}).json()["data"]}
    first = bulk(server, tmp_path, cache)
    out = tmp_path / "out"
    assert first.returncode == 3, first.stderr
    (error,) = [json.loads(line)["error"] for line in (out / "errors.jsonl").read_text().splitlines()]
    assert (error["code"], error["class"]) == ("NEVER_FITS", "capacity")
    assert "NEVER_FITS" in Path(error["log_uri"]).read_text()
    assert "is done" in (out / "row-1" / "attempt_1.log").read_text()
    assert "on 1 groups" in first.stderr
    online = server.ended(server.create(seed=1)["id"])
    assert (out / "row-1" / "video.mp4").read_bytes() == server.content(online["id"])
    after = {video["id"] for video in server.client.get("/v1/videos", params={"limit": 100}).json()["data"]}
    assert after - before == {online["id"]}  # what is in the output folder is no longer kept by the service
    second = bulk(server, tmp_path, cache)
    assert (second.returncode, "3 made before" in second.stdout) == (3, True)


def test_a_plan_is_what_the_service_itself_would_say(server: Server, tmp_path: Path, cache: Path) -> None:
    write_manifest(tmp_path, [{"custom_id": "row", "num_clip": 10}])
    plan = json.loads(bulk(server, tmp_path, cache, "--dry-run").stdout)
    quote = server.post("/v1/videos/plan", num_clip=10).json()
    assert (plan["lanes"], plan["gpus_per_lane"]) == (1, 1)
    assert plan["eta_s"] == pytest.approx(quote["seconds"], rel=0.05)
    assert plan["gpu_hours"] == pytest.approx(quote["seconds"] / 3600, abs=0.001)
    assert not (tmp_path / "out").exists()
