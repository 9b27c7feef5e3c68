"""What each rank loads and sends: its role and its shard, and what the layout says, to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve_app.model.checkpoint import Checkpoint
from serve_app.model.dit import CausalDiT
from tests.distributed.ranks import Ranks, ranks
from tests.engine.test_rank_program import a_task

NUM_BLOCKS, STEPS, LAYERS, DIM = 5, 3, 2, 96
TOKENS = 16
"""Of one latent frame of 64x64 pixels."""
FLOAT = 4
LATENTS = 16 * 3 * 8 * 8 * FLOAT
VOICE = 25 * 16 * 12 * FLOAT
TASK = a_task(frames=12 * NUM_BLOCKS, infer_frames=24)


def reports(checkpoint: Path, layout: str) -> list[dict[str, Any]]:
    gang = Ranks(checkpoint, layout)
    try:
        return [dict(report.facts) for report in gang.start()]
    finally:
        gang.stop()


def sent(checkpoint: Path, layout: str) -> dict[str, int]:
    with ranks(checkpoint, layout) as gang:
        return gang.run(TASK).sent_bytes


@pytest.fixture(scope="module", name="dit")
def _dit(checkpoint: Path) -> CausalDiT:
    return Checkpoint(checkpoint).dit().module


def num_bytes(module: Any) -> int:
    return FLOAT * sum(parameter.numel() for parameter in module.parameters())


def in_units(dit: CausalDiT) -> int:
    injector = dit.audio_injector
    return sum(num_bytes(part) for part in (dit.blocks, injector))


def test_a_role_loads_its_networks_alone(checkpoint: Path, dit: CausalDiT) -> None:
    source, stage, decoder = reports(checkpoint, "stages=2,vae=1")
    assert stage["dit_bytes"] == source["dit_bytes"] == num_bytes(dit)
    assert "dit_bytes" not in decoder
    assert "vae_bytes" in source  # it encodes the portrait
    assert "vae_bytes" not in stage
    assert decoder["vae_bytes"] == source["vae_bytes"]


def test_a_shard_holds_its_part_of_layers_and_injectors_and_the_rest_whole(checkpoint: Path, dit: CausalDiT) -> None:
    whole = num_bytes(dit)
    rest = whole - in_units(dit)
    for size in (2, 4):
        held = [report["dit_bytes"] for report in reports(checkpoint, f"ulysses={size},weight_shards={size}")]
        assert sum(held) == in_units(dit) + size * rest
        assert max(held) < rest + 1.35 * in_units(dit) / size  # rows of some tensors do not divide evenly


def test_the_largest_unit_is_told_to_planning(checkpoint: Path, dit: CausalDiT) -> None:
    layer = num_bytes(dit.layers[0])
    assert reports(checkpoint, "ulysses=2,weight_shards=2")[0]["largest_unit_bytes"] == layer
    assert reports(checkpoint, "offload=layers")[0]["largest_unit_bytes"] == layer


def test_stages_send_conditions_latents_and_voice_and_one_reference_back(checkpoint: Path) -> None:
    motion, reference = 16 * 19 * 8 * 8 * FLOAT, 16 * 8 * 8 * FLOAT
    text = sent(checkpoint, "stages=2")["messages"] - motion - NUM_BLOCKS * (LATENTS + VOICE) - reference
    assert 0 < text <= 32 * 16 * FLOAT
    assert text % (16 * FLOAT) == 0


def test_the_voice_does_not_travel_to_decoders(checkpoint: Path) -> None:
    with_voice = sent(checkpoint, "stages=2")["messages"]
    to_decoder = sent(checkpoint, "vae=1")["messages"]
    assert with_voice - to_decoder == NUM_BLOCKS * VOICE + 16 * 8 * 8 * FLOAT


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ulysses_trades_tokens_for_heads_and_no_more(checkpoint: Path, size: int) -> None:
    """Per layer q, k, v and the output; per call every rank's patches to all; two prefills of the sink."""
    padded = -(-TOKENS // size) * size
    sink = -(-40 // size) * size  # 16 + 16 + 4 + 4 condition tokens
    to_others = (size - 1) / size
    around_attention = 4 * LAYERS * DIM * FLOAT * to_others
    gathered = 3 * padded * 64 * FLOAT * (size - 1)
    calls = NUM_BLOCKS * STEPS * (3 * padded * around_attention + gathered)
    assert sent(checkpoint, f"ulysses={size}")["ulysses"] == calls + 2 * sink * around_attention
