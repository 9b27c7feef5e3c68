"""What may stand between a user and a cluster: forwards bytes, cuts connections, is away."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

CHUNK = 1 << 14


class Gateway:
    """Forwards connections to one address, and cuts each after `max_bytes` of answer, times `growth` at every cut."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_away = False
        self.max_bytes = sys.maxsize
        self.growth = 1
        self.num_cut = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def leave(self) -> None:
        """Cuts all connections, and whatever comes."""
        self.is_away = True
        self.cut()

    def come_back(self) -> None:
        self.is_away = False

    def cut(self) -> None:
        for end in list(self._open):
            _close(end)

    def close(self) -> None:
        _close(self._listener)
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.is_away:
                    client.close()
                else:
                    self._forward(client)

    def _forward(self, client: socket.socket) -> None:
        server = socket.create_connection(self._target)
        self._open |= {client, server}
        threading.Thread(target=self._copy, args=(client, server, sys.maxsize), daemon=True).start()
        threading.Thread(target=self._copy, args=(server, client, self.max_bytes), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, max_bytes: int) -> None:
        num_bytes = 0
        with suppress(OSError):
            while chunk := source.recv(CHUNK):
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    self.num_cut += 1
                    self.max_bytes *= self.growth
                    break
                sink.sendall(chunk)
        self._open -= {source, sink}
        _close(source)
        _close(sink)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
    end.close()


@contextmanager
def gateway_to(target: str) -> Iterator[Gateway]:
    gateway = Gateway(target)
    try:
        yield gateway
    finally:
        gateway.close()
