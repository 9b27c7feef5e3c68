"""Counts the storages that are alive while torch code runs, on real or on fake tensors, and records them as events."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Event = tuple[int, int]
"""(storage, bytes) when it comes, (storage, 0) when it goes."""


class LiveStorage(TorchDispatchMode):
    """Knows every storage that an operation makes until it is freed; views cost nothing."""

    def __init__(self, *, ignored: Iterable[Tensor] = ()) -> None:
        """`ignored` tensors, such as weights, are counted elsewhere."""
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.events: list[Event] = []
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._sizes: dict[int, int] = {}
        self._count = 0
        for tensor in ignored:
            self._known[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return out

    def reset_peak(self) -> None:
        self.peak_bytes = self.live_bytes

    def number_of(self, tensor: Tensor) -> int:
        """Returns the number under which events know the tensor's storage."""
        return self._known[tensor.untyped_storage()]

    def mark(self) -> int:
        """Returns where the events stand, to cut them there."""
        return len(self.events)

    def resized(self, tensor: Tensor) -> None:
        """Takes note of a storage that was resized behind the back of all operations."""
        number, size = self._known[tensor.untyped_storage()], tensor.untyped_storage().nbytes()
        self.live_bytes += size - self._sizes[number]
        self._sizes[number] = size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._count += 1
        number, size = self._count, storage.nbytes()
        self._known[storage] = number
        self._sizes[number] = size
        self.events.append((number, size))
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._forget, number)

    def _forget(self, number: int) -> None:
        self.live_bytes -= self._sizes.pop(number)
        self.events.append((number, 0))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns the bytes of the distinct storages behind tensors."""
    return sum({id(storage): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}.values())


def all_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Makes new weights and tensors of `dtype`: inside fake mode modules are not cast."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
