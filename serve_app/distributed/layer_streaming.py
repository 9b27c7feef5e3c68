"""Offload: units stream from pinned host memory through two slots on the device, one computing, one being filled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.distributed.units import Unit, around, called_in_order, called_per_block
from serve_app.model.dit import CausalDiT

_ALIGNMENT = 64
"""Bytes; what vectorised kernels like best."""


def stream_units(dit: CausalDiT, device: torch.device) -> None:
    """Keeps the units of a transformer on the host and moves the rest to `device`.

    Results are those of the resident model, bit by bit: only where weights lie before they are used changes.
    """
    in_order = called_in_order(dit)
    units = [*in_order, *called_per_block(dit)]
    sizes = [_padded_bytes(unit) for unit in units]
    # One buffer: torch rounds every pinned one up to a power of two, and layer by layer that is half as much again.
    host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    streamed = [_Streamed(unit, part) for unit, part in zip(units, host.split(sizes), strict=True)]
    _move_the_rest(dit, device, streamed)
    # After the last unit of a call the first one comes again.
    cycle = streamed[: len(in_order)]
    for unit, following in pairwise([*cycle, cycle[0]]):
        unit.following = following
    stream = _Stream(streamed, device)
    for unit in streamed:
        around(unit.unit, stream.present(unit))


class _Streamed:
    """One unit on the host: all its weights in one piece of memory, from which one copy fills a slot."""

    def __init__(self, unit: Unit, host: Tensor) -> None:
        """Copies the unit's weights into `host`, uint8 of `_padded_bytes`."""
        self.unit = unit
        self.host = host
        self.following: _Streamed | None = None
        self._places: list[tuple[nn.Parameter, slice]] = []
        end = 0
        for parameter in unit.module.parameters():
            self._places.append((parameter, slice(end, end + parameter.nbytes)))
            end += _padded(parameter)
        self._on_host = self.views(self.host)
        for parameter, view in zip(self.parameters(), self._on_host, strict=True):
            view.copy_(parameter.data)
        self.leave_device()

    def leave_device(self) -> None:
        """Makes the weights those on the host, so that nobody computes with a slot that holds another unit."""
        self.point_to(self._on_host)

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter, _ in self._places]

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Returns the weights as they lie in a buffer of the host's layout."""
        return [buffer[place].view(parameter.dtype).view(parameter.shape) for parameter, place in self._places]

    def point_to(self, views: Sequence[Tensor]) -> None:
        for parameter, view in zip(self.parameters(), views, strict=True):
            parameter.data = view


def _padded(parameter: nn.Parameter) -> int:
    return -(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT


def _padded_bytes(unit: Unit) -> int:
    return sum(_padded(parameter) for parameter in unit.module.parameters())


@dataclass(eq=False)
class _Slot:
    """Device memory for one unit; `filled` and `free` are CUDA events, None where copies happen at once."""

    buffer: Tensor
    holds: _Streamed | None = None
    filled: torch.cuda.Event | None = None
    free: torch.cuda.Event | None = None
    views: dict[_Streamed, list[Tensor]] = field(default_factory=dict)

    def views_of(self, unit: _Streamed) -> list[Tensor]:
        if unit not in self.views:
            self.views[unit] = unit.views(self.buffer)
        return self.views[unit]


class _Stream:
    """Two slots, and the order in which units come."""

    def __init__(self, units: Sequence[_Streamed], device: torch.device) -> None:
        size = max(unit.host.numel() for unit in units)
        self._slots = [_Slot(torch.empty(size, dtype=torch.uint8, device=device)) for _ in range(2)]
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._copies is not None:  # the slots are there once what was asked for so far is done
            self._copies.wait_stream(torch.cuda.current_stream(device))

    def present(self, unit: _Streamed) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Returns a wrapper that has the unit's weights on the device while a method runs."""

        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401  (whatever the method takes and gives)
                with self._on_device(unit):
                    return method(*arguments, **options)

            return call

        return wrap

    @contextmanager
    def _on_device(self, unit: _Streamed) -> Iterator[None]:
        slot = self._slot_of(unit)
        if self._copies is not None and slot.filled is not None:
            torch.cuda.current_stream().wait_event(slot.filled)
        unit.point_to(slot.views_of(unit))
        if unit.following is not None and not any(other.holds is unit.following for other in self._slots):
            self._fill(self._other(slot), unit.following)
        try:
            yield
        finally:
            unit.leave_device()
            if self._copies is not None:
                slot.free = torch.cuda.current_stream().record_event()

    def _slot_of(self, unit: _Streamed) -> _Slot:
        """Returns the slot that holds the unit, filling one when it was not foreseen."""
        for slot in self._slots:
            if slot.holds is unit:
                return slot
        return self._fill(self._slots[0], unit)

    def _other(self, slot: _Slot) -> _Slot:
        return self._slots[1] if slot is self._slots[0] else self._slots[0]

    def _fill(self, slot: _Slot, unit: _Streamed) -> _Slot:
        """Copies a unit into a slot once the computation that used the slot has ended."""
        with nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            if self._copies is not None and slot.free is not None:
                self._copies.wait_event(slot.free)
            slot.buffer[: unit.host.numel()].copy_(unit.host, non_blocking=True)
            slot.holds = unit
            slot.filled = None if self._copies is None else self._copies.record_event()
        return slot


def _move_the_rest(dit: CausalDiT, device: torch.device, streamed: Sequence[_Streamed]) -> None:
    on_host = {parameter for unit in streamed for parameter in unit.parameters()}
    for parameter in dit.parameters():
        if parameter not in on_host:
            parameter.data = parameter.data.to(device)
