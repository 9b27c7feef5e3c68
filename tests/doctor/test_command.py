"""`live-avatar doctor`, as a command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_app.doctor import examination
from serve_app.doctor.examination import Question, as_table, examine
from serve_app.doctor.finding import Finding, Status

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120


def doctor(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serve_app.cli", "doctor", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def findings(process: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {finding["check"]: finding for finding in json.loads(process.stdout)["findings"]}


def test_a_table_has_a_line_per_check_and_a_sum(tmp_path: Path) -> None:
    process = doctor(cwd=tmp_path)
    lines = [line for line in process.stdout.splitlines() if not line.lstrip().startswith("->")]
    assert process.stderr == ""
    assert {"gpus", "shared memory", "loopback"} <= {line.split("  ")[0] for line in lines}
    assert len({line.index(status) for line in lines[:-1] for status in Status if f"  {status} " in line}) == 1
    assert lines[-1].endswith(" skipped")
    assert (process.returncode == 0) == (", 0 problem, " in lines[-1])


def test_a_port_in_use_is_a_problem_and_ends_with_exit_code_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = doctor("--json", "--port", str(port), cwd=tmp_path)
    assert process.returncode == 1
    assert json.loads(process.stdout)["healthy"] is False
    assert findings(process)[f"port {port}"]["status"] == "problem"


def test_the_environment_is_looked_at(tmp_path: Path) -> None:
    found = findings(doctor("--json", cwd=tmp_path, GLOO_SOCKET_IFNAME="none7", CUDA_VISIBLE_DEVICES=""))
    assert found["environment of NCCL"]["status"] == "problem"
    assert found["environment of CUDA"]["status"] == "warning"


def test_a_checkpoint_is_looked_at(small_checkpoint: Path, tmp_path: Path) -> None:
    found = findings(doctor("--json", "--checkpoint", small_checkpoint, cwd=tmp_path))
    assert found["checkpoint files"]["status"] == "ok"
    assert found["checkpoint tensors"]["status"] == "ok", found["checkpoint tensors"]["message"]


@pytest.mark.parametrize("port", ["0", "65536", "-1"])
def test_a_port_that_cannot_be_is_bad_input(tmp_path: Path, port: str) -> None:
    process = doctor("--port", port, cwd=tmp_path)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr


def test_every_finding_bears_the_name_of_its_check(
    monkeypatch: pytest.MonkeyPatch, small_checkpoint: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(examination, "CHECKPOINT_TIMEOUT_S", 0.01)
    asked = Question(output_dir=tmp_path, cache_dir=tmp_path, ports=[8000], checkpoint=small_checkpoint)
    found = examine(asked)
    assert [finding.check for finding in found] == list(examination._checks(asked, {}))
    assert not [finding for finding in found if "check itself failed" in finding.message]


def test_torch_stays_outside(tmp_path: Path) -> None:
    look = "import sys; from serve_app.cli import main; main(['doctor']); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", look], cwd=tmp_path, env=environment, check=True, timeout=TIMEOUT_S, capture_output=True
    )


def test_the_remedy_stands_below_what_needs_attention() -> None:
    shown = as_table(
        [
            Finding("port 1", Status.PROBLEM, "in use", "choose another"),
            Finding("gpus", Status.SKIPPED, "no GPU", "not shown"),
        ]
    )
    assert shown.splitlines() == [
        "port 1  problem  in use",
        "                 -> choose another",
        "gpus    skipped  no GPU",
        "0 ok, 0 warning, 1 problem, 1 skipped",
    ]
