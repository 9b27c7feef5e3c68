"""Checks of a checkpoint folder: first its files, in no time and without torch, then their tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from serve_app.doctor.finding import Finding, Status
from serve_app.doctor.packages import TorchBuild

GIB = 2**30
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".download")
_AGAIN = "download what is named again"


def check_files(folder: Path) -> Finding:
    """Looks for downloads that did not end: files that are cut off, missing, or only stand for the real ones."""
    check = "checkpoint files"
    if not folder.is_dir():
        return Finding(check, Status.PROBLEM, f"{folder} is no folder", "name the folder that holds the checkpoint")
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    faults = [f"{path.relative_to(folder)} {fault}" for path in files if (fault := file_fault(path))]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        return Finding(check, Status.PROBLEM, "; ".join(faults[:5]) + more, _AGAIN)
    total_bytes = sum(path.stat().st_size for path in files)
    return Finding(check, Status.OK, f"{len(files)} files, {total_bytes / GIB:.2f} GiB, none is cut off")


def file_fault(path: Path) -> str:
    """Returns what is wrong with a file as far as its length and first bytes tell, or nothing."""
    if not path.exists():
        return "is a link to nothing"
    if path.suffix in _UNFINISHED:
        return "is a download that did not end"
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself (git lfs pull)"
    if path.name.endswith(".index.json"):
        return _index_fault(path)
    if path.suffix == ".safetensors" and not _is_whole_safetensors(path):
        return "is cut off"
    if path.suffix in (".pth", ".pt", ".bin") and start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "is cut off"
    return "" if start else "is empty"


def _is_whole_safetensors(path: Path) -> bool:
    """The header tells where the last tensor ends."""
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > path.stat().st_size:
                return False
            tensors = json.loads(file.read(header_bytes))
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False
    return path.stat().st_size == 8 + header_bytes + max(ends, default=0)


def _index_fault(path: Path) -> str:
    try:
        shards = set(json.loads(path.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is damaged"
    missing = sorted(shard for shard in shards if not path.with_name(str(shard)).is_file())
    return f"names {missing[0]}, which is missing" if missing else ""


def check_tensors(folder: Path, build: TorchBuild | None, *, timeout_s: float) -> Finding:
    """Runs `live-avatar checkpoint verify`, which needs torch, as a process that can be ended after `timeout_s`."""
    check = "checkpoint tensors"
    if build is None:
        return Finding(check, Status.SKIPPED, "torch, which reads them, is not installed")
    read_all = f"live-avatar checkpoint verify {folder} reads all of it"
    try:
        process = subprocess.run(  # noqa: S603  (this program)
            [sys.executable, "-m", "serve_app.cli", "checkpoint", "verify", folder.absolute()],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    except subprocess.TimeoutExpired as stopped:
        return _unfinished(check, (stopped.stdout or b"").decode(errors="replace"), timeout_s, read_all)
    if process.returncode == 0:
        return Finding(check, Status.OK, f"{len(process.stdout.splitlines())} networks, every tensor was read")
    faults = _faults(process.stdout) or process.stderr.strip().splitlines()[-1:]
    return Finding(check, Status.PROBLEM, "; ".join(faults), read_all)


def _unfinished(check: str, printed: str, timeout_s: float, read_all: str) -> Finding:
    if faults := _faults(printed):
        return Finding(check, Status.PROBLEM, "; ".join(faults), read_all)
    sound = ", ".join(line.split()[0] for line in printed.splitlines()) or "nothing yet"
    return Finding(check, Status.SKIPPED, f"not read to the end within {timeout_s:g} s; sound: {sound}", read_all)


def _faults(printed: str) -> list[str]:
    """Returns the lines of `checkpoint verify` that tell of a fault."""
    return [" ".join(line.split()) for line in printed.splitlines() if " ok, " not in line]
