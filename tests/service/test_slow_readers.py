"""Readers that do not read, behind Serve's proxy: what they leave unread stays in the file."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from tests.service.conftest import ANSWER_S, Server

MIB = 2**20
FILE_BYTES = 128 * MIB
WINDOWS_BYTES = FILE_BYTES // 4
ALLOWED_BYTES = FILE_BYTES // 2
"""Of memory: heaps grow with what passes through; a reader whose video is kept for it takes all of FILE_BYTES."""
ROLES = ("ray::ProxyActor", "ray::ServeReplica:live-avatar:Ingress")


@dataclass
class SlowReader:
    """A connection that has asked for a video and read the head of the answer."""

    connection: socket.socket
    head: bytes

    def rest(self) -> int:
        """Reads all that is left of the video; returns the number of its bytes."""
        num_bytes = len(self.head.partition(b"\r\n\r\n")[2])
        while num_bytes < FILE_BYTES and (chunk := self.connection.recv(MIB)):
            num_bytes += len(chunk)
        return num_bytes


@contextmanager
def slow_reader(server: Server, path: str) -> Iterator[SlowReader]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=ANSWER_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        yield SlowReader(connection, connection.recv(1024))


def memory_bytes(server: Server) -> int:
    """Returns what proxy and API have for themselves."""
    return sum(process.memory_full_info().uss for role in ROLES for process in server.processes(role))


def read_bytes(server: Server) -> int:
    """Returns how much the API has read from files so far."""
    [ingress] = server.processes(ROLES[1])
    return int(psutil.Process(ingress.pid).io_counters().read_chars)


def test_of_a_video_that_nobody_reads_on_no_more_than_a_window_leaves_the_file(server: Server) -> None:
    video_id = server.ended(server.create()["id"])["id"]
    os.truncate(server.folder / "data" / "videos" / video_id / "1.mp4", FILE_BYTES)
    path = f"/v1/videos/{video_id}/content"
    before = read_bytes(server), memory_bytes(server)
    with slow_reader(server, path) as reader:
        assert b" 200 OK" in reader.head
        with server.client.stream("GET", path) as answer:  # by the time that this has the whole, so could the other
            assert sum(map(len, answer.iter_bytes())) == FILE_BYTES
        assert read_bytes(server) - before[0] < FILE_BYTES + WINDOWS_BYTES
        assert memory_bytes(server) - before[1] < ALLOWED_BYTES
        assert reader.rest() == FILE_BYTES
    assert server.client.delete(f"/v1/videos/{video_id}").status_code == 200
