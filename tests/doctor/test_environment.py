"""Settings and leftovers that change how Ray, CUDA and NCCL behave."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.doctor.environment import check_communication, check_cuda_environment, check_ray_environment
from serve_app.doctor.finding import Status

INTERFACES = ["lo", "eth0", "docker0"]


@pytest.mark.parametrize(
    ("environment", "status", "told"),
    [
        ({}, Status.OK, "nothing is set"),
        ({"NCCL_DEBUG": "WARN", "PATH": "/bin"}, Status.OK, "NCCL_DEBUG=WARN"),
        ({"NCCL_SOCKET_IFNAME": "eth"}, Status.OK, "NCCL_SOCKET_IFNAME=eth"),
        ({"NCCL_SOCKET_IFNAME": "=ib0,eth0"}, Status.OK, "NCCL_SOCKET_IFNAME==ib0,eth0"),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, Status.OK, "NCCL_SOCKET_IFNAME=^docker"),
        ({"GLOO_SOCKET_IFNAME": "ib0"}, Status.PROBLEM, "GLOO_SOCKET_IFNAME=ib0 names no interface of this machine"),
        ({"NCCL_P2P_DISABLE": "1"}, Status.WARNING, "NCCL_P2P_DISABLE=1 slows GPUs"),
        ({"NCCL_P2P_DISABLE": "0"}, Status.OK, "NCCL_P2P_DISABLE=0"),
        ({"NCCL_DEBUG": "info"}, Status.WARNING, "NCCL_DEBUG=info writes much"),
        ({"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "86400"}, Status.WARNING, "lets a hung GPU process hang for hours"),
        ({"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "600"}, Status.OK, "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=600"),
    ],
)
def test_settings_of_nccl_and_gloo_are_told_and_judged(environment: dict[str, str], status: Status, told: str) -> None:
    found = check_communication(environment, INTERFACES)
    assert found.status is status
    assert told in found.message


@pytest.mark.parametrize(
    ("environment", "status"),
    [
        ({}, Status.OK),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, Status.OK),
        ({"CUDA_VISIBLE_DEVICES": ""}, Status.WARNING),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, Status.WARNING),
    ],
)
def test_hidden_gpus_are_told(environment: dict[str, str], status: Status) -> None:
    assert check_cuda_environment(environment).status is status


def test_a_clean_environment_of_ray_is_fine(tmp_path: Path) -> None:
    assert check_ray_environment({}, tmp_path, tmp_path).message == "nothing is set or left over"


def test_what_makes_ray_join_a_cluster_is_told(tmp_path: Path) -> None:
    for left_over in (".ray/auth_token", "ray/ray_current_cluster"):
        (tmp_path / left_over).parent.mkdir()
        (tmp_path / left_over).write_text("secret")
    found = check_ray_environment({"RAY_ADDRESS": "10.0.0.1:6379"}, tmp_path, tmp_path)
    assert found.status is Status.WARNING
    for told in ("RAY_ADDRESS=10.0.0.1:6379", "ray_current_cluster", "auth_token"):
        assert told in found.message
    assert "secret" not in found.message


def test_a_token_is_no_trap_when_the_mode_is_set(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").touch()
    found = check_ray_environment({"RAY_AUTH_MODE": "disabled"}, tmp_path, tmp_path / "none")
    assert (found.status, found.message) == (Status.OK, "RAY_AUTH_MODE=disabled")
