"""Checks of ports, loopback and the host's name."""

from __future__ import annotations

import errno
import socket
from typing import Any

from serve_app.doctor.finding import Finding, Status

USUAL_PORTS = {
    6379: "Ray",
    8000: "HTTP",
    8265: "Ray's dashboard",
    10001: "Ray's client",
    29103: "rendezvous of the published launch scripts",
}
LOOPBACK = "127.0.0.1"
_TIMEOUT_S = 5.0


def check_port(port: int, *, is_asked_for: bool) -> Finding:
    """Tries to take a port, and gives it back at once. One in use is a problem when the user asked about it."""
    check = f"port {port}"
    use = USUAL_PORTS.get(port, "yours")
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            listener.bind(("", port))
    except OSError as error:
        return _not_free(check, port, use, error, Status.PROBLEM if is_asked_for else Status.WARNING)
    return Finding(check, Status.OK, f"free ({use})")


def _not_free(check: str, port: int, use: str, error: OSError, status: Status) -> Finding:
    if error.errno == errno.EADDRINUSE:
        remedy = f"ss -ltnp 'sport = :{port}' names who listens: all is well when that is yours, else choose another"
        return Finding(check, status, f"in use ({use})", remedy)
    if error.errno == errno.EACCES:
        return Finding(check, status, f"not allowed to this user ({use})", "choose a port above 1023")
    return Finding(check, status, f"cannot be taken ({use}): {error.strerror}", "choose another port")


def check_loopback() -> Finding:
    """Connects to itself, as ranks on one machine connect to each other."""
    try:
        with (
            socket.create_server((LOOPBACK, 0)) as listener,
            socket.create_connection(listener.getsockname(), timeout=_TIMEOUT_S),
        ):
            return Finding("loopback", Status.OK, f"{LOOPBACK} connects")
    except OSError as error:
        message = f"{LOOPBACK} does not connect: {error}"
        return Finding("loopback", Status.PROBLEM, message, "bring the interface up (ip link set lo up), or allow it")


def check_host_name(name: str) -> Finding:
    """Resolves the host's own name: gloo listens on the address that it finds."""
    remedy = f'add a line "{LOOPBACK} {name}" to /etc/hosts, or set GLOO_SOCKET_IFNAME to an interface (ip -br addr)'
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except OSError as error:
        return Finding("host name", Status.PROBLEM, f'"{name}" resolves to nothing: {error.strerror}', remedy)
    foreign = [str(address[0]) for family, _, _, _, address in found if not _is_own(family, address)]
    if foreign:
        message = f'"{name}" resolves to {", ".join(foreign)}, which is no address of this machine'
        return Finding("host name", Status.PROBLEM, message, remedy)
    return Finding("host name", Status.OK, f"{name} is {', '.join(str(address[4][0]) for address in found)}")


def _is_own(family: socket.AddressFamily, address: tuple[Any, ...]) -> bool:
    try:
        with socket.socket(family) as listener:
            listener.bind(address)
    except OSError:
        return False
    return True
