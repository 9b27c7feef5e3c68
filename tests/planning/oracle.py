"""An oracle: what a rank takes from its card when recorded traces run through the caching allocator.

It knows none of planning's formulas for memory: weights are those of the modules, everything else is recorded. Two
videos follow one another, for the second meets what the first has left behind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from serve_app.planning.calibration import Calibration
from serve_app.planning.layout import ParallelLayout, RankPlace, Role
from serve_app.planning.workload import WHOLE_SPEECH_SECONDS, Workload
from tests.planning.caching_allocator import CachingAllocator, ExpandableAllocator, OutOfMemoryError
from tests.planning.live_storage import Event
from tests.planning.traces import (
    CallTrace,
    LayerTrace,
    call_traces,
    decode_traces,
    dit_weights,
    portrait_trace,
    small_weights,
    speech_trace,
    text_trace,
)

NUM_LAYERS = 40
_TEXT_TOKENS, _DIM, _BF16 = 512, 5120, 2
_USUAL_WASTE, _PRECISION = 1.008, 1.009
_SMALLEST_BYTES = 2**16
"""Smaller storages are left out: thousands of them fit into one page."""
_NUM_VIDEOS = 2
_INJECTOR, _INJECTOR_OF_A_CALL, _LAST_OF_A_CALL = 1, 2, 3
"""Where an injector stands among all units, behind the layer that it follows; and in a recorded call."""


Allocator = type[CachingAllocator]


def card_needed(
    work: Workload, layout: ParallelLayout, calibration: Calibration, *, allocator: Allocator = ExpandableAllocator
) -> int:
    """Returns the smallest card, in bytes, on which no rank of the layout runs out of memory."""
    fixed = calibration.context_bytes + (calibration.communicator_bytes if layout.world_size > 1 else 0)
    ranks = (_Rank(work, layout, place) for place in _different(work, layout))
    return fixed + max(_least_capacity(rank, allocator) for rank in ranks)


def _different(work: Workload, layout: ParallelLayout) -> list[RankPlace]:
    """Returns one rank of each kind: the source, others by how many steps they own and whether they decode."""

    def kind(place: RankPlace) -> tuple[bool, Role, int, bool]:
        steps = len(layout.steps_of(place.stage, work.sample_steps))
        return place.rank == 0, place.role, steps, place.rank in layout.decoding_ranks

    return list({kind(place): place for place in layout.places()}.values())


def _least_capacity(rank: _Rank, allocator: Allocator) -> int:
    """Searches between what is alive at most, which no card can do without, and what is cached at most."""
    free = allocator()
    rank.run(free)
    low, high = free.peak_allocated, free.peak_reserved
    middle = round(_USUAL_WASTE * low)  # most ranks get by with so much
    while high > _PRECISION * low:
        middle = min(middle, high - 1)
        if _runs(rank, allocator(middle)):
            high = middle
        else:
            low = middle
        middle = (low + high) // 2
    return high


def _runs(rank: _Rank, card: CachingAllocator) -> bool:
    try:
        rank.run(card)
    except OutOfMemoryError:
        return False
    return True


@dataclass(frozen=True)
class _Rank:
    """One rank's life: loading, then videos."""

    work: Workload
    layout: ParallelLayout
    place: RankPlace

    def run(self, card: CachingAllocator) -> None:
        self._load(card)
        for video in range(_NUM_VIDEOS):
            _Video(self, card, video).run()

    @property
    def is_stage(self) -> bool:
        return self.place.role is Role.STAGE

    @property
    def is_decoder(self) -> bool:
        return self.place.rank in self.layout.decoding_ranks

    def _load(self, card: CachingAllocator) -> None:
        vae, _ = small_weights()
        if self.is_stage:
            for name, size in self._dit_tensors():
                card.take(("dit", name), size)
        if self.place.rank == 0 or self.is_decoder:
            for number, size in enumerate(vae):
                card.take(("vae", number), size)

    def _dit_tensors(self) -> Iterator[tuple[object, int]]:
        units, rest = dit_weights()
        yield from ((("rest", number), size) for number, size in enumerate(rest))
        if self.layout.offload == "layers":
            slot = max(map(sum, units))
            yield from ((("slot", 0), slot), (("slot", 1), slot))
            return
        for unit, sizes in enumerate(units):
            yield from (((unit, number), -(-size // self.layout.weight_shards)) for number, size in enumerate(sizes))


class _Video:
    """One video on one rank: conditions, sink, windows, blocks until these are full, the new sink, one more block."""

    def __init__(self, rank: _Rank, card: CachingAllocator, index: int) -> None:
        self._rank = rank
        self._card = card
        self._index = index
        self._alive: dict[str, set[object]] = defaultdict(set)

    def run(self) -> None:
        if self._rank.place.rank == 0:
            self._condition()
        if self._rank.is_stage:
            self._denoise()
        elif self._rank.is_decoder:
            for segment in self._decoding():
                self._replay("decoder", segment)
        for scope in list(self._alive):
            self._drop(scope)

    def _condition(self) -> None:
        weights, prompt = text_trace()
        self._take_all("text encoder", weights)
        self._replay("prompt", prompt)
        self._drop("text encoder")
        self._replay("portrait", portrait_trace(self._rank.work.size))
        self._drop("portrait")
        self._hear()  # `engine.sampler.begin_blocks`: the first window before the caches

    def _hear(self) -> None:
        self._take_all("speech encoder", small_weights()[1])
        self._replay("voice", speech_trace(round(self._rank.work.encoded_speech_seconds)))
        self._drop("voice")
        self._drop("speech encoder")

    def _denoise(self) -> None:
        work, layout = self._rank.work, self._rank.layout
        layer, calls = call_traces(work, layout.ulysses)
        self._take_all("text", [_TEXT_TOKENS * _DIM * _BF16] * 2 * NUM_LAYERS)
        self._prefill(layer)
        steps = len(layout.steps_of(self._rank.place.stage, work.sample_steps))
        window = work.window_tokens * _DIM // layout.ulysses * _BF16
        self._take_all("windows", [window] * (2 * NUM_LAYERS * steps))
        decoding = self._decoding()
        self._replay("decoder", next(decoding, ()))
        if self._rank.place.rank == 0 and work.speech_seconds > WHOLE_SPEECH_SECONDS:
            self._hear()
        for call in calls if steps else ():
            self._call(call)
            self._replay("decoder", next(decoding, ()))
        self._drop("sink")
        self._prefill(layer)
        if steps:
            self._call(calls[-1])
        self._replay("decoder", next(decoding, ()))

    def _decoding(self) -> Iterator[Sequence[Event]]:
        ranks = self._rank.layout.decoding_ranks
        if self._rank.is_decoder:
            yield from decode_traces(self._rank.work.size, len(ranks), ranks.index(self._rank.place.rank))

    def _prefill(self, layer: LayerTrace) -> None:
        for number in range(NUM_LAYERS):
            for ago, storage, size in layer.events:
                self._event("sink", (number - ago, storage), size)
        for key in [key for key in self._alive["sink"] if key[1] not in layer.kept]:  # type: ignore[index]
            self._event("sink", key, 0)

    def _call(self, call: CallTrace) -> None:
        """Replays a call; with sharded weights every unit is gathered before it and let go behind it (FSDP2)."""
        gathering = {place: unit for unit, place in enumerate(call.starts)} if self._is_sharded else {}
        letting_go = {place: unit for unit, place in enumerate(call.ends)} if self._is_sharded else {}
        for place, (number, size) in enumerate(call.events):
            if place in letting_go:
                self._drop(f"unit {letting_go[place]}")
            if place in gathering:
                self._gather(gathering[place])
            self._event("call", number, size)
        for scope in ("call", "gathered", *(f"unit {unit}" for unit in letting_go.values())):
            self._drop(scope)

    @property
    def _is_sharded(self) -> bool:
        return self._rank.layout.weight_shards > 1

    def _gather(self, unit: int) -> None:
        """Makes a unit whole, and begins to gather the next layer while a layer runs (`distributed.weight_sharding`).

        Buffers are of the gathering stream; an injector's stays until the next gathering.
        """
        is_injector = unit == _INJECTOR_OF_A_CALL
        tensors = dit_weights()[0][_INJECTOR if is_injector else 0]
        if is_injector or not self._alive["gathered"]:
            self._buffer(f"of {unit}", sum(tensors))
        for number, size in enumerate(tensors):
            self._event(f"unit {unit}", number, size)
        if not is_injector:
            self._drop("gathered")
            if unit != _LAST_OF_A_CALL:
                self._buffer(f"after {unit}", sum(tensors))

    def _buffer(self, key: str, num_bytes: int) -> None:
        self._card.take((self._index, "gathered", key), num_bytes, stream="gathering")
        self._alive["gathered"].add(key)

    def _replay(self, scope: str, events: Iterable[Event]) -> None:
        for number, size in events:
            self._event(scope, number, size)

    def _take_all(self, scope: str, sizes: Iterable[int]) -> None:
        for number, size in enumerate(sizes):
            self._event(scope, number, size)

    def _event(self, scope: str, key: object, size: int) -> None:
        if size >= _SMALLEST_BYTES:
            self._card.take((self._index, scope, key), size)
            self._alive[scope].add(key)
        elif not size:
            self._card.give((self._index, scope, key))
            self._alive[scope].discard(key)

    def _drop(self, scope: str) -> None:
        for key in list(self._alive.pop(scope, ())):
            self._card.give((self._index, scope, key))
