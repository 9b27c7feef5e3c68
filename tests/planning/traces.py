"""Traces of what storages come and go, recorded per kind of work at the exact shape on the real networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from serve_app.distributed.channel import Peer
from serve_app.distributed.mesh import Axis
from serve_app.distributed.traffic import Traffic
from serve_app.distributed.ulysses import Ulysses
from serve_app.distributed.units import all_units
from serve_app.distributed.vae_parallel import split_decoder
from serve_app.engine.decoding import FrameDecoder
from serve_app.model.config import ModelSizes, TextEncoderConfig
from serve_app.model.dit import CausalDiT
from serve_app.model.speech_encoder import SpeechEncoder, speech_config
from serve_app.model.text_encoder import TextEncoder
from serve_app.planning.geometry import Size, Timeline
from serve_app.planning.workload import Workload
from tests.planning.full_size import FakeVideo, faked, full_dit, full_vae, latents, tracked
from tests.planning.live_storage import Event

DECODED_BLOCKS = 2
_PORTRAIT_FRAMES = 5
"""Of 73: the encoder works chunk by chunk, and each is like the one before."""


@dataclass(frozen=True)
class CallTrace:
    """One denoising call over three layers, audio injected behind the second.

    `starts` and `ends` are places in the events: of layer 0, layer 1, its injector, layer 2.
    """

    events: tuple[Event, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class LayerTrace:
    """One layer of the prefill, made to be repeated: (how many layers ago it came, which storage of its layer, bytes).

    Bytes 0 is a free. `kept` storages stay: the sink.
    """

    events: tuple[tuple[int, int, int], ...]
    kept: frozenset[int]


@contextmanager
def fake_axis(size: int, index: int = 0) -> Iterator[Axis]:
    """Opens an axis of ranks whose collectives bring nothing; this rank stands at `index`."""
    distributed.init_process_group("fake", rank=index, world_size=size, store=FakeStore())
    try:
        group = distributed.group.WORLD
        assert group is not None
        yield Axis(group, tuple(Peer(rank, f"rank {rank}") for rank in range(size)), index)
    finally:
        distributed.destroy_process_group()


@lru_cache(maxsize=8)
def call_traces(work: Workload, ulysses: int) -> tuple[LayerTrace, tuple[CallTrace, ...]]:
    """Returns a layer of the prefill, and a call for every number of blocks that the window may hold."""
    starts: list[int] = []
    ends: list[int] = []
    with fake_axis(ulysses) as axis, faked():
        dit = _shared_dit(axis)
        with tracked(dit) as live:
            for unit in (*dit.layers, *dit.audio_injector.injector):
                unit.register_forward_pre_hook(lambda *_: starts.append(live.mark()))
                unit.register_forward_hook(lambda *_: ends.append(live.mark()))
            video = FakeVideo.begin(dit, work, live)
            prefill_starts, sink = starts[:3], [*video.sink.keys, *video.sink.values]
            kept = {live.number_of(tensor) for tensor in sink}
            calls = []
            for block in range(video.blocks_per_window):
                starts.clear()
                ends.clear()
                first = live.mark()
                video.call(block)
                marks = ([mark - first for mark in found] for found in (starts, ends))
                calls.append(CallTrace(tuple(live.events[first:]), *map(tuple, marks)))
            return _layer_trace(live.events, prefill_starts, kept), tuple(calls)


def _shared_dit(axis: Axis) -> CausalDiT:
    dit = full_dit(3, injected=(1,))
    if axis.size > 1:
        shared = Ulysses(axis, Traffic())
        dit.trunk = shared.around_trunk(dit.trunk)
        for layer in dit.layers:
            layer.self_attn.core = shared.around_core(layer.self_attn.core)
    return dit


def _layer_trace(events: list[Event], starts: list[int], kept: set[int]) -> LayerTrace:
    """Cuts layer 1 out of the prefill; what it frees of layer 0 it will free of the layer before."""
    order = [
        {number: index for index, number in enumerate(n for n, size in events[start:stop] if size)}
        for start, stop in pairwise(starts)
    ]
    repeated = [
        (ago, order[1 - ago][number], size)
        for number, size in events[starts[1] : starts[2]]
        for ago in (0, 1)
        if number in order[1 - ago]
    ]
    return LayerTrace(tuple(repeated), frozenset(order[1][number] for number in kept if number in order[1]))


@lru_cache(maxsize=8)
def decode_traces(size: Size, num_ranks: int, index: int) -> tuple[tuple[Event, ...], ...]:
    """Returns the priming and some blocks of one video; numbers run on from one to the next."""
    with fake_axis(num_ranks, index) as axis, faked():
        vae = full_vae()
        if num_ranks > 1:
            split_decoder(vae, axis, Traffic())
        with tracked(vae) as live:
            decoder = FrameDecoder(vae, latents(size, 19))
            marks = [0, live.mark()]
            for block in range(DECODED_BLOCKS):
                decoder.decode(latents(size, 3), Timeline(240, 48).position(block))
                marks.append(live.mark())
        return tuple(tuple(live.events[start:stop]) for start, stop in pairwise(marks))


@lru_cache(maxsize=8)
def portrait_trace(size: Size) -> tuple[Event, ...]:
    with faked():
        vae = full_vae()
        with tracked(vae) as live:
            frame = torch.zeros(3, size.height, size.width, dtype=torch.float32)
            vae.encode(frame[:, None].expand(-1, _PORTRAIT_FRAMES, -1, -1))
    return tuple(live.events)


@cache
def speech_trace(seconds: int) -> tuple[Event, ...]:
    with faked(torch.float32):
        encoder = SpeechEncoder(speech_config(ModelSizes().speech)).eval().requires_grad_(False)
        with tracked(encoder) as live:
            encoder(torch.zeros(seconds * 16_000))
    return tuple(live.events)


@cache
def text_trace() -> tuple[tuple[int, ...], tuple[Event, ...]]:
    """Returns the sizes of the text encoder's weights, and the events of the longest prompt."""
    with faked():
        encoder = TextEncoder(TextEncoderConfig()).eval().requires_grad_(False)
        weights = tuple(parameter.nbytes for parameter in encoder.parameters())
        with tracked(encoder) as live:
            encoder(torch.zeros(512, dtype=torch.int64))
    return weights, tuple(live.events)


@cache
def dit_weights() -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Returns by unit the bytes of its tensors, layers first, and those of what belongs to no unit."""
    with faked():
        dit = full_dit(40, injected=ModelSizes().dit.audio_inject_layers)
        units = [tuple(parameter.nbytes for parameter in unit.module.parameters()) for unit in all_units(dit)]
        in_units = {parameter for unit in all_units(dit) for parameter in unit.module.parameters()}
        rest = tuple(parameter.nbytes for parameter in dit.parameters() if parameter not in in_units)
    return tuple(units), rest


@cache
def small_weights() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the bytes of the VAE's tensors, and of the speech encoder's."""
    with faked():
        vae = tuple(parameter.nbytes for parameter in full_vae().parameters())
    with faked(torch.float32):
        speech = SpeechEncoder(speech_config(ModelSizes().speech))
        return vae, tuple(parameter.nbytes for parameter in speech.parameters())
