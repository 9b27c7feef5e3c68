"""`live-avatar convert` and `live-avatar checkpoint verify`, as commands."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from serve_app.model.checkpoint import BASE_FOLDER, VAE_FILE

TIMEOUT_S = 120


def live_avatar(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve_app.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=Path(__file__).parents[2]
    )


def test_a_folder_is_converted_and_found_sound(small_checkpoint: Path, tmp_path: Path) -> None:
    converted = live_avatar("convert", "--checkpoint", small_checkpoint, "--out", tmp_path / "new")
    assert converted.returncode == 0, converted.stderr
    assert converted.stdout.splitlines()[-1].startswith(str(tmp_path / "new"))
    verified = live_avatar("checkpoint", "verify", tmp_path / "new")
    assert verified.returncode == 0, verified.stderr
    assert [line.split()[1].rstrip(",") for line in verified.stdout.splitlines()] == ["ok"] * 5


def test_a_damaged_network_is_named_and_the_exit_code_is_1(small_checkpoint: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(small_checkpoint, tmp_path / "damaged")
    (damaged / BASE_FOLDER / VAE_FILE).write_bytes(b"not any more")
    verified = live_avatar("checkpoint", "verify", damaged)
    assert verified.returncode == 1
    assert "Wan2.1_VAE" in next(line for line in verified.stdout.splitlines() if line.startswith("vae"))


def test_a_folder_that_is_no_checkpoint_is_bad_input(tmp_path: Path) -> None:
    for command in (["convert", "--checkpoint", tmp_path, "--out", tmp_path / "x"], ["checkpoint", "verify", tmp_path]):
        found = live_avatar(*command)
        assert found.returncode == 2
        assert BASE_FOLDER in found.stderr
        assert "Traceback" not in found.stderr
