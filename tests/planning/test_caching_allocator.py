"""The simulated allocators: what they round, cache, give back, and that blocks never overlap."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planning.caching_allocator import MIB, CachingAllocator, ExpandableAllocator, OutOfMemoryError


@pytest.mark.parametrize(
    ("num_bytes", "fixed", "expandable"),
    [
        (1, 2 * MIB, 2 * MIB),
        (MIB, 2 * MIB, 2 * MIB),
        (MIB + 1, 20 * MIB, 20 * MIB),
        (10 * MIB, 10 * MIB, 20 * MIB),
        (10 * MIB + 1, 12 * MIB, 20 * MIB),
        (654 * MIB, 654 * MIB, 660 * MIB),
    ],
)
def test_what_one_storage_takes_from_the_card(num_bytes: int, fixed: int, expandable: int) -> None:
    for allocator, expected in ((CachingAllocator(), fixed), (ExpandableAllocator(), expandable)):
        allocator.take("a", num_bytes)
        assert allocator.reserved == expected


def test_a_fixed_segment_is_not_joined_with_another() -> None:
    card = CachingAllocator()
    for name in "ab":
        card.take(name, 30 * MIB)
    for name in "ab":
        card.give(name)
    card.take("c", 60 * MIB)
    assert card.reserved == 120 * MIB


def test_expandable_segments_join() -> None:
    card = ExpandableAllocator()
    for name in "ab":
        card.take(name, 30 * MIB)
    for name in "ab":
        card.give(name)
    card.take("c", 60 * MIB)
    assert card.reserved == 60 * MIB


def test_what_is_cached_goes_back_before_giving_up() -> None:
    card = CachingAllocator(100 * MIB)
    card.take("a", 60 * MIB)
    card.give("a")
    card.take("b", 80 * MIB)
    assert card.reserved == 80 * MIB
    with pytest.raises(OutOfMemoryError):
        card.take("c", 30 * MIB)


def test_an_expandable_segment_gives_back_what_is_free_around_used_blocks() -> None:
    card = ExpandableAllocator(100 * MIB)
    card.take("a", 40 * MIB)
    card.take("kept", 20 * MIB)
    card.give("a")
    card.take("b", 80 * MIB)
    assert card.reserved == 100 * MIB


STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(1, 200)), max_size=150)


@pytest.mark.parametrize("kind", [CachingAllocator, ExpandableAllocator])
@given(steps=STEPS, capacity=st.sampled_from([None, 400, 900]))
@settings(max_examples=150, deadline=None)
def test_blocks_never_overlap_and_all_comes_back(
    kind: type[CachingAllocator], steps: list[tuple[bool, int, int]], capacity: int | None
) -> None:
    card = kind(None if capacity is None else capacity * MIB)
    taken: dict[int, int] = {}
    for takes, key, size in steps:
        if takes and key not in taken:
            try:
                card.take(key, size * MIB // 3)
            except OutOfMemoryError:
                continue
            taken[key] = size
        elif not takes:
            card.give(key)
            taken.pop(key, None)
        blocks = sorted((block.address, block.end) for block in card._used.values() if not block.pool[1])
        assert all(stop <= start for (_, stop), (start, _) in pairwise(blocks))
        assert card.allocated <= card.reserved
        assert capacity is None or card.reserved <= capacity * MIB
        assert len(card._free_blocks) == sum(map(len, card._free.values()))
    for key in taken:
        card.give(key)
    assert card.allocated == 0
    card._give_back_cached()
    assert card.reserved == 0
