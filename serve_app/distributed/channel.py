"""Channel: tensors from one rank to another, in order, each wait with a deadline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from serve_app.distributed.traffic import Traffic
from serve_app.errors import RankError

_MAX_TENSORS = 2
_MAX_DIMS = 5
_DTYPES = (torch.float32, torch.bfloat16, torch.uint8)
_PER_TENSOR = 2 + _MAX_DIMS
_HEADER_LENGTH = 3 + _MAX_TENSORS * _PER_TENSOR


@dataclass(frozen=True, eq=False)
class Packet:
    """One message: what it is, a number that belongs to it, and up to two tensors of up to five dims."""

    kind: int
    index: int = 0
    tensors: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Peer:
    """The rank at the other end, and what messages call it."""

    rank: int
    name: str


class Sender:
    """Sends packets to one rank; at most one is on its way."""

    def __init__(self, peer: Peer, *, timeout_s: float, traffic: Traffic) -> None:
        self._peer = peer
        self._timeout_s = timeout_s
        self._traffic = traffic
        self._under_way: list[tuple[distributed.Work, Tensor]] = []

    def send(self, packet: Packet) -> None:
        """Hands a packet over, and returns while it travels; first waits until the one before has left.

        Raises RankError when the other side is gone or takes nothing for `timeout_s`.
        """
        self.flush()
        tensors = [tensor.contiguous() for tensor in packet.tensors]
        try:
            for tensor in [_header(packet, tensors), *tensors]:
                work = distributed.isend(tensor, dst=self._peer.rank)
                assert work is not None, "a rank sends to itself"
                self._under_way.append((work, tensor))  # the tensor lives until it has left
        except RuntimeError as error:
            raise _gone(self._peer, "taken a message", error) from error
        self._traffic.add("messages", sum(tensor.nbytes for tensor in tensors))

    def flush(self) -> None:
        """Waits until everything sent has left."""
        for work, _ in self._under_way:
            try:
                work.wait(timedelta(seconds=self._timeout_s))
            except RuntimeError as error:
                raise _gone(self._peer, f"taken a message within {self._timeout_s:g} s", error) from error
        self._under_way.clear()


class Receiver:
    """Receives the packets of one rank; tensors come to `device`."""

    def __init__(self, peer: Peer, *, device: torch.device) -> None:
        self._peer = peer
        self._device = device

    def receive(self, *, timeout_s: float) -> Packet:
        """Waits for the next packet; raises RankError when none comes for `timeout_s` or the other side is gone."""
        header = torch.empty(_HEADER_LENGTH, dtype=torch.int64)
        self._fill(header, timeout_s)
        kind, index, num_tensors, *described = header.tolist()
        tensors = []
        for number in range(num_tensors):
            dtype, dims, *shape = described[number * _PER_TENSOR : (number + 1) * _PER_TENSOR]
            tensor = torch.empty(shape[:dims], dtype=_DTYPES[dtype], device=self._device)
            self._fill(tensor, timeout_s)
            tensors.append(tensor)
        return Packet(kind, index, tuple(tensors))

    def _fill(self, tensor: Tensor, timeout_s: float) -> None:
        try:
            work = distributed.irecv(tensor, src=self._peer.rank)
            assert work is not None, "a rank receives from itself"
            work.wait(timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise _gone(self._peer, f"sent a message within {timeout_s:g} s", error) from error


def _header(packet: Packet, tensors: Sequence[Tensor]) -> Tensor:
    assert len(tensors) <= _MAX_TENSORS
    values = [packet.kind, packet.index, len(tensors)]
    for tensor in tensors:
        assert tensor.dim() <= _MAX_DIMS
        shape = [*tensor.shape, *(0,) * (_MAX_DIMS - tensor.dim())]
        values += [_DTYPES.index(tensor.dtype), tensor.dim(), *shape]
    values += [0] * (_HEADER_LENGTH - len(values))
    return torch.tensor(values, dtype=torch.int64)


def _gone(peer: Peer, what: str, error: RuntimeError) -> RankError:
    reason = str(error).splitlines()[0]
    return RankError(
        f"{peer.name} (rank {peer.rank}) has not {what}: {reason}",
        remedy="see why that rank stopped or hangs; it is restarted together with its gang",
    )
