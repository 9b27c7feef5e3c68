"""Layers from the host: two slots, and while one layer computes the next is on its way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ray_cluster.program import Seat, Unattended
from serve_app.distributed import layer_streaming
from serve_app.engine.rank_program import AvatarProgram
from serve_app.model.dit import CausalDiT
from tests.engine.test_rank_program import a_task


def started(checkpoint: Path) -> AvatarProgram:
    program = AvatarProgram(checkpoint=str(checkpoint), cache_dir=Path("unused"), layout="offload=layers")
    program.start(Seat(rank=0, num_ranks=1, rendezvous=""))
    return program


def test_what_comes_next_is_there_before_it_is_asked_for(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreseen: list[bool] = []
    slot_of = layer_streaming._Stream._slot_of

    def watched(stream: layer_streaming._Stream, unit: layer_streaming._Streamed) -> layer_streaming._Slot:
        foreseen.append(any(slot.holds is unit for slot in stream._slots))
        return slot_of(stream, unit)

    monkeypatch.setattr(layer_streaming._Stream, "_slot_of", watched)
    list(started(checkpoint).run(a_task(frames=60, infer_frames=24), Unattended(lambda: False)))
    assert len(foreseen) > 50
    assert sum(foreseen) > 0.6 * len(foreseen)  # the rest: what prepares a video or a block, and the unit after that


def test_after_a_video_every_weight_is_on_the_host_again(checkpoint: Path) -> None:
    program = started(checkpoint)
    dit = program._networks.dit
    assert isinstance(dit, CausalDiT)
    before = {name: parameter.data_ptr() for name, parameter in dit.named_parameters()}
    list(program.run(a_task(frames=12), Unattended(lambda: False)))
    assert {name: parameter.data_ptr() for name, parameter in dit.named_parameters()} == before


def test_all_units_lie_in_one_buffer_so_that_rounding_up_costs_once(checkpoint: Path) -> None:
    dit = started(checkpoint)._networks.dit
    assert dit is not None
    storages = {parameter.untyped_storage().data_ptr() for layer in dit.layers for parameter in layer.parameters()}
    assert len(storages) == 1
    assert all(torch.isfinite(parameter).all() for parameter in dit.parameters())
