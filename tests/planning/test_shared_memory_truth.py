"""The formulas for ranks that share a video, beside the real parallel code at full size: one rank, fake collectives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.testing._internal.distributed.fake_pg import FakeStore

from serve_app.distributed.channel import Peer
from serve_app.distributed.mesh import Axis
from serve_app.distributed.parallelize import largest_unit_bytes
from serve_app.distributed.traffic import Traffic
from serve_app.distributed.ulysses import Ulysses
from serve_app.distributed.units import all_units
from serve_app.distributed.vae_parallel import split_decoder
from serve_app.distributed.weight_sharding import shard_units
from serve_app.engine.decoding import FrameDecoder
from serve_app.model.config import ModelSizes
from serve_app.planning.calibration import load_calibration
from serve_app.planning.decoding import decode_bytes, stream_bytes
from serve_app.planning.geometry import Size, Timeline
from serve_app.planning.layout import ParallelLayout, share
from serve_app.planning.memory import denoise_bytes, estimate
from serve_app.planning.network import PUBLISHED
from serve_app.planning.workload import Workload
from tests.planning.full_size import FakeVideo, faked, full_dit, full_vae, latents, peak_of, tracked
from tests.planning.live_storage import LiveStorage, storage_bytes

TOLERANCE = 0.03
BF16 = 2


class FakeAxis:
    """Opens an axis of so many ranks whose collectives bring nothing; this rank stands at `index`."""

    def __call__(self, size: int, index: int = 0) -> Axis:
        distributed.init_process_group("fake", rank=index, world_size=size, store=FakeStore())
        group = distributed.group.WORLD
        assert group is not None
        return Axis(group, tuple(Peer(rank, f"rank {rank}") for rank in range(size)), index)


@pytest.fixture
def axis_of() -> Iterator[FakeAxis]:
    yield FakeAxis()
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("size", "infer_frames", "ulysses"),
    [
        (Size(704, 384), 48, 2),
        (Size(704, 384), 48, 4),
        (Size(704, 384), 12, 8),
        (Size(640, 384), 96, 4),
        (Size(448, 640), 36, 5),
        (Size(384, 256), 48, 8),
        (Size(1280, 704), 24, 2),
    ],
    ids=str,
)
def test_a_call_on_the_ulysses_axis(axis_of: FakeAxis, size: Size, infer_frames: int, ulysses: int) -> None:
    work, layout = Workload(size, infer_frames, sample_steps=1), ParallelLayout(ulysses=ulysses)
    axis = axis_of(ulysses)
    with faked():
        dit = full_dit(2, injected=(0,))
        shared = Ulysses(axis, Traffic())
        dit.trunk = shared.around_trunk(dit.trunk)
        for layer in dit.layers:
            layer.self_attn.core = shared.around_core(layer.self_attn.core)
        with tracked(dit) as live:
            video = FakeVideo.begin(dit, work, live)
            seen = max(video.call(block) for block in (0, video.blocks_per_window))
            sink = storage_bytes((*video.sink.keys, *video.sink.values))
            window = storage_bytes((*video.window.keys, *video.window.values))
    assert denoise_bytes(work, layout, PUBLISHED, BF16) == pytest.approx(seen, rel=TOLERANCE)
    memory = estimate(work, layout, dtype="bfloat16", calibration=load_calibration())[1]
    per_layer = {part.name: part.num_bytes / PUBLISHED.dit.num_layers for part in memory.parts}
    assert per_layer["sink"] == sink / 2
    assert per_layer["KV cache"] == window / 2


@pytest.mark.parametrize(
    ("size", "num_ranks", "index"),
    [
        (Size(704, 384), 2, 0),
        (Size(704, 384), 4, 1),
        (Size(640, 448), 8, 7),
        (Size(384, 256), 5, 2),
        (Size(1280, 704), 4, 0),
    ],
    ids=str,
)
def test_a_strip_of_the_picture(axis_of: FakeAxis, size: Size, num_ranks: int, index: int) -> None:
    strip = len(share(size.latent_width, num_ranks, index)) / size.latent_width
    axis = axis_of(num_ranks, index)
    with faked():
        vae = full_vae()
        split_decoder(vae, axis, Traffic())
        with tracked(vae) as live:
            still, block = latents(size, 19), latents(size, 3)
            before = live.live_bytes
            decoder = FrameDecoder(vae, still)
            stream = live.live_bytes - before
            seen = peak_of(live, lambda: decoder.decode(block, Timeline(240, 48).position(1)))
    assert stream_bytes(PUBLISHED.vae, size, BF16, strip) == pytest.approx(stream, rel=1e-5)
    assert decode_bytes(PUBLISHED.vae, size, BF16, strip) == pytest.approx(seen, rel=TOLERANCE)


def test_units_are_those_that_are_gathered_and_streamed() -> None:
    with faked():
        dit = full_dit(40, injected=ModelSizes().dit.audio_inject_layers)
        sizes = sorted(unit.num_bytes for unit in all_units(dit))
    assert sizes == sorted(unit * BF16 for unit in PUBLISHED.dit.units)
    assert largest_unit_bytes(dit) == max(PUBLISHED.dit.units) * BF16


@pytest.mark.parametrize(("size", "infer_frames"), [(Size(384, 256), 24), (Size(1280, 704), 96)], ids=str)
def test_sharded_units_are_whole_while_a_call_runs(
    axis_of: FakeAxis, monkeypatch: pytest.MonkeyPatch, size: Size, infer_frames: int
) -> None:
    work, layout = Workload(size, infer_frames), ParallelLayout(ulysses=4, weight_shards=4)
    axis = axis_of(4)
    monkeypatch.setattr(DeviceMesh, "from_group", _from_real_group)
    with faked():
        dit = full_dit(4, injected=(0,))
        shard_units(dit, axis, "cpu", Traffic())
        shared = Ulysses(axis, Traffic())
        dit.trunk = shared.around_trunk(dit.trunk)
        for layer in dit.layers:
            layer.self_attn.core = shared.around_core(layer.self_attn.core)
        kept = storage_bytes(getattr(parameter, "_local_tensor", parameter) for parameter in dit.parameters())
        with tracked(dit) as live:
            _tell_of_gathering(monkeypatch, live)
            video = FakeVideo.begin(dit, work, live)
            seen = max(video.call(block) for block in (0, video.blocks_per_window))
    dims = replace(PUBLISHED, dit=replace(PUBLISHED.dit, num_layers=4, num_injectors=1))
    memory = estimate(work, layout, dtype="bfloat16", calibration=load_calibration(), dims=dims)[1]
    assert next(part.num_bytes for part in memory.parts if part.name == "transformer weights") == kept
    phase = next(phase for phase in memory.phases if phase.name == "denoise")
    assert phase.with_margin(1.0) == pytest.approx(seen, rel=TOLERANCE)


_from_group = DeviceMesh.from_group


def _from_real_group(*arguments: Any, **options: Any) -> DeviceMesh:
    """Makes a mesh whose ranks are known: it asks a tensor for them."""
    with unset_fake_temporarily():
        return _from_group(*arguments, **options)


def _tell_of_gathering(monkeypatch: pytest.MonkeyPatch, live: LiveStorage) -> None:
    """FSDP2 resizes the storages of gathered weights, which is no operation that a tracker sees."""
    for name in ("alloc_storage", "free_storage"):
        original = getattr(_fsdp_param, name)

        def told(tensor: Tensor, original: Any = original) -> None:
            original(tensor)
            live.resized(tensor)

        monkeypatch.setattr(_fsdp_param, name, told)
