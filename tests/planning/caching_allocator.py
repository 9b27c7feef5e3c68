"""CUDA's caching allocator as torch has it, in arithmetic, with expandable segments or with fixed ones.

Source: c10/cuda/CUDACachingAllocator.cpp. Sizes are rounded up to 512 bytes; small ones (to 1 MiB) and large ones have
pools of their own, for each stream; the best fitting free block is split; neighbours merge; before giving up, what is
cached goes back to the card. Fixed segments (torch's default) come in 2 MiB, 20 MiB or more and go back only when
wholly free. Expandable ones are one range per pool that maps pages of 2 or 20 MiB and gives back any free page.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from dataclasses import dataclass, field

MIB = 2**20
_ALIGNMENT = 512
_SMALL = MIB
_SMALL_SEGMENT = 2 * MIB
_LARGE_SEGMENT = 20 * MIB
_MIN_LARGE = 10 * MIB
_SEGMENT_STEP = 2 * MIB

_Pool = tuple[str, bool]
"""A stream, and whether its blocks are small."""


class OutOfMemoryError(Exception):
    """The card is full, even after all that is cached was given back."""


@dataclass(eq=False, slots=True)
class _Block:
    address: int
    size: int
    pool: _Pool
    before: _Block | None = field(default=None, repr=False)
    after: _Block | None = field(default=None, repr=False)
    is_free: bool = False
    is_mapped: bool = True

    @property
    def end(self) -> int:
        return self.address + self.size


class CachingAllocator:
    """Fixed segments. Takes storages until the card is full; `peak_reserved` is what it took from the card."""

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._free: dict[_Pool, list[tuple[int, int]]] = defaultdict(list)
        self._free_blocks: dict[tuple[_Pool, int], _Block] = {}
        self._used: dict[object, _Block] = {}
        self._next_address = 0
        self.reserved = 0
        self.peak_reserved = 0
        self.allocated = 0
        self.peak_allocated = 0

    def take(self, key: object, num_bytes: int, *, stream: str = "main") -> None:
        """Raises OutOfMemoryError."""
        size = max(_ALIGNMENT, -(-num_bytes // _ALIGNMENT) * _ALIGNMENT)
        pool = (stream, size <= _SMALL)
        block = self._best_fit(size, pool)
        if block is None:
            try:
                block = self._more(size, pool)
            except OutOfMemoryError:
                self._give_back_cached()
                block = self._best_fit(size, pool) or self._more(size, pool)
        self._split(block, size)
        self._used[key] = block
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)

    def give(self, key: object) -> None:
        """Frees a storage; one that was never taken (it had no bytes) is no matter."""
        block = self._used.pop(key, None)
        if block is not None:
            self.allocated -= block.size
            self._set_free(self._merged(block))

    def _more(self, size: int, pool: _Pool) -> _Block:
        """Returns a new segment."""
        if pool[1]:
            segment = _SMALL_SEGMENT
        elif size < _MIN_LARGE:
            segment = _LARGE_SEGMENT
        else:
            segment = -(-size // _SEGMENT_STEP) * _SEGMENT_STEP
        self._reserve(segment)
        block = _Block(self._next_address, segment, pool)
        self._next_address += segment
        return block

    def _give_back_cached(self) -> None:
        for block in list(self._free_blocks.values()):
            if block.before is None and block.after is None:
                self._unset_free(block)
                self.reserved -= block.size

    def _reserve(self, num_bytes: int) -> None:
        if self._capacity is not None and self.reserved + num_bytes > self._capacity:
            raise OutOfMemoryError
        self.reserved += num_bytes
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def _best_fit(self, size: int, pool: _Pool) -> _Block | None:
        free = self._free[pool]
        index = bisect.bisect_left(free, (size, -1))
        if index == len(free):
            return None
        block = self._free_blocks[pool, free[index][1]]
        self._unset_free(block)
        return block

    def _split(self, block: _Block, size: int) -> None:
        remaining = block.size - size
        is_worth_it = remaining >= _ALIGNMENT if block.pool[1] or self._splits_all else remaining > _SMALL
        if is_worth_it:
            self._set_free(_cut(block, size))

    _splits_all = False

    def _merged(self, block: _Block) -> _Block:
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.is_free:
                self._unset_free(neighbour)
                block = _joined(neighbour, block) if neighbour is block.before else _joined(block, neighbour)
        return block

    def _set_free(self, block: _Block) -> None:
        block.is_free = True
        bisect.insort(self._free[block.pool], (block.size, block.address))
        self._free_blocks[block.pool, block.address] = block

    def _unset_free(self, block: _Block) -> None:
        free = self._free[block.pool]
        free.pop(bisect.bisect_left(free, (block.size, block.address)))
        del self._free_blocks[block.pool, block.address]
        block.is_free = False


class ExpandableAllocator(CachingAllocator):
    """Expandable segments: one range of addresses per pool, of which pages are mapped and unmapped."""

    _splits_all = True
    _RANGE = 2**50

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__(capacity)
        self._unmapped: dict[_Pool, list[_Block]] = {}

    def _more(self, size: int, pool: _Pool) -> _Block:
        """Maps pages behind a free block, or wherever free and unmapped blocks in a row are enough."""
        unmapped = self._unmapped.setdefault(pool, [_Block(0, self._RANGE, pool, is_mapped=False)])
        for start in unmapped:
            first = start.before if start.before is not None and start.before.is_free else start
            row = _row(first, size)
            if row:
                return self._map(row, size, pool)
        raise AssertionError("the range has no end")

    def _map(self, row: list[_Block], size: int, pool: _Pool) -> _Block:
        """Maps what of the row is not mapped, of its last block only the pages that are lacking."""
        page, lacking = _page(pool), size - sum(block.size for block in row[:-1])
        for block in row:
            if block.is_mapped:
                continue
            wanted = min(block.size, -(-lacking // page) * page) if block is row[-1] else block.size
            self._reserve(wanted)
            self._unmapped[pool].remove(block)
            if wanted < block.size:
                rest = _cut(block, wanted)
                rest.is_mapped = False
                bisect.insort(self._unmapped[pool], rest, key=lambda one: one.address)
            block.is_mapped = True
            self._set_free(block)
        for block in row:
            self._unset_free(block)
        whole = row[0]
        for block in row[1:]:
            whole = _joined(whole, block)
        return whole

    def _give_back_cached(self) -> None:
        for block in list(self._free_blocks.values()):
            page = _page(block.pool)
            start, end = -(-block.address // page) * page, block.end // page * page
            if start < end:
                self._unset_free(block)
                self._unmap(block, start, end)
                self.reserved -= end - start

    def _unmap(self, block: _Block, start: int, end: int) -> None:
        """Unmaps start..end of a block that is neither used nor in a list; what is left at its ends stays free."""
        inner = _cut(block, start - block.address) if start > block.address else block
        if inner is not block:
            self._set_free(block)
        if end < inner.end:
            self._set_free(_cut(inner, end - inner.address))
        inner.is_mapped = False
        unmapped = self._unmapped[block.pool]
        if inner.after is not None and not inner.after.is_mapped:
            unmapped.remove(inner.after)
            inner = _joined(inner, inner.after)
        if inner.before is not None and not inner.before.is_mapped:
            unmapped.remove(inner.before)
            inner = _joined(inner.before, inner)
        bisect.insort(unmapped, inner, key=lambda one: one.address)


def _page(pool: _Pool) -> int:
    return _SMALL_SEGMENT if pool[1] else _LARGE_SEGMENT


def _row(first: _Block, size: int) -> list[_Block]:
    """Returns the free and unmapped blocks from `first` on that together hold `size`, or none."""
    row, total, block = [], 0, first
    while block is not None and (block.is_free or not block.is_mapped):  # type: ignore[redundant-expr]
        row.append(block)
        total += block.size
        if total >= size:
            return row
        block = block.after  # type: ignore[assignment]
    return []


def _cut(block: _Block, size: int) -> _Block:
    """Shortens a block to `size` and returns the rest."""
    rest = _Block(block.address + size, block.size - size, block.pool, before=block, after=block.after)
    if block.after is not None:
        block.after.before = rest
    block.size, block.after = size, rest
    return rest


def _joined(first: _Block, second: _Block) -> _Block:
    first.size += second.size
    first.after = second.after
    if second.after is not None:
        second.after.before = first
    return first
