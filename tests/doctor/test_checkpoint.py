"""A checkpoint folder whose download did not end is found out by its files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.doctor import checkpoint
from serve_app.doctor.finding import Status
from serve_app.doctor.packages import TorchBuild

BUILD = TorchBuild("2.13.0", None)
Damage = Callable[[Path], object]


def cut(path: Path, *, keep: float) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


def largest(folder: Path, pattern: str) -> Path:
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_size)


@pytest.fixture
def copy(small_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_checkpoint, tmp_path / "ckpt")


def test_a_whole_folder_is_fine(small_checkpoint: Path) -> None:
    found = checkpoint.check_files(small_checkpoint)
    assert (found.status, found.message.split(", ")[-1]) == (Status.OK, "none is cut off")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: cut(largest(folder, "*.safetensors"), keep=0.9), "is cut off"),
        (lambda folder: cut(largest(folder, "*.safetensors"), keep=0.0), "is cut off"),
        (lambda folder: cut(largest(folder, "*.pth"), keep=0.9), "is cut off"),
        (lambda folder: cut(largest(folder, "config.json"), keep=0), "is empty"),
        (lambda folder: (folder / "vae.pth.incomplete").touch(), "is a download that did not end"),
        (lambda folder: (folder / "vae.pth").symlink_to(folder / "blob"), "is a link to nothing"),
        (
            lambda folder: largest(folder, "*.pth").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "is a pointer of Git LFS, not the file itself (git lfs pull)",
        ),
        (
            lambda folder: (folder / "x.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors"}})),
            "names 1.safetensors, which is missing",
        ),
        (lambda folder: (folder / "x.index.json").write_text("{}"), "is damaged"),
        (lambda folder: (folder / "x.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0[]"), "is cut off"),
    ],
    ids=lambda part: part[:25] if isinstance(part, str) else "",
)
def test_a_file_that_is_not_whole_is_named(copy: Path, damage: Damage, fault: str) -> None:
    damage(copy)
    found = checkpoint.check_files(copy)
    assert found.status is Status.PROBLEM
    assert found.message.endswith(fault)
    assert not found.message.startswith(str(copy))


def test_no_folder_is_a_problem(tmp_path: Path) -> None:
    assert checkpoint.check_files(tmp_path / "none").message == f"{tmp_path / 'none'} is no folder"


@pytest.mark.parametrize(
    ("exit_code", "printed", "errors", "told"),
    [
        (
            1,
            "dit   ok, 9 tensors, 10 parameters\nvae   x.pth is damaged; download it again\n",
            "",
            "vae x.pth is damaged",
        ),
        (2, "", "live-avatar: ckpt holds no Wan2.2-S2V-14B/config.json; name the folder\n", "live-avatar: ckpt holds"),
    ],
)
def test_tensors_that_are_not_sound_are_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exit_code: int, printed: str, errors: str, told: str
) -> None:
    process: subprocess.CompletedProcess[str] = subprocess.CompletedProcess([], exit_code, printed, errors)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: process)
    found = checkpoint.check_tensors(tmp_path, BUILD, timeout_s=1)
    assert found.status is Status.PROBLEM
    assert found.message.startswith(told)


def test_reading_ends_in_time_and_says_how_to_read_on(small_checkpoint: Path) -> None:
    found = checkpoint.check_tensors(small_checkpoint, BUILD, timeout_s=0.01)
    assert (found.status, found.message) == (Status.SKIPPED, "not read to the end within 0.01 s; sound: nothing yet")
    assert found.remedy.startswith("live-avatar checkpoint verify ")


def test_without_torch_tensors_are_not_read(tmp_path: Path) -> None:
    assert checkpoint.check_tensors(tmp_path, None, timeout_s=60).status is Status.SKIPPED
