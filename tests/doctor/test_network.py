"""Ports, loopback and the host's name."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from serve_app.doctor.finding import Status
from serve_app.doctor.network import check_host_name, check_loopback, check_port


@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_a_port_that_somebody_listens_on_is_in_use(address: str) -> None:
    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]
        asked, usual = check_port(port, is_asked_for=True), check_port(port, is_asked_for=False)
    assert (asked.status, usual.status) == (Status.PROBLEM, Status.WARNING)
    assert asked.message == "in use (yours)"
    assert str(port) in asked.remedy


def test_a_port_that_was_given_back_is_free_and_stays_free() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    for _ in range(2):
        assert check_port(port, is_asked_for=True).status is Status.OK


def test_a_port_that_the_user_may_not_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    found = check_port(80, is_asked_for=True)
    assert (found.status, found.remedy) == (Status.PROBLEM, "choose a port above 1023")


def test_loopback_connects() -> None:
    assert check_loopback().status is Status.OK


def test_a_loopback_that_is_down_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    monkeypatch.setattr(socket, "create_connection", refuse)
    found = check_loopback()
    assert found.status is Status.PROBLEM
    assert "Network is unreachable" in found.message


def test_a_name_of_this_machine_is_fine() -> None:
    found = check_host_name("localhost")
    assert found.status is Status.OK
    assert "127.0.0.1" in found.message


def test_a_name_that_resolves_to_nothing_is_a_problem() -> None:
    found = check_host_name("no-such-host.invalid")
    assert found.status is Status.PROBLEM
    assert '"no-such-host.invalid" resolves to nothing' in found.message
    assert "GLOO_SOCKET_IFNAME" in found.remedy


def test_a_name_of_another_machine_is_a_problem() -> None:
    found = check_host_name("203.0.113.9")  # an address that is kept for documentation
    assert found.status is Status.PROBLEM
    assert found.message.endswith("resolves to 203.0.113.9, which is no address of this machine")
