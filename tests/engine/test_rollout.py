"""The rollout's rules: seeded distances, noise by clip, and calls that any owner of a step may make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from serve_app.engine.conditioning import Conditions
from serve_app.engine.rollout import Rollout, RolloutPlan, drawn_distance
from serve_app.engine.sampler import sample
from serve_app.model.checkpoint import Checkpoint, Placement
from serve_app.model.dit import CausalDiT
from serve_app.model.flow_match import euler_schedule
from serve_app.model.speech_encoder import SpeechFeatures
from serve_app.planning.geometry import Size, Timeline

CPU = Placement(torch.device("cpu"), torch.float32)


def test_the_distance_is_a_function_of_seed_block_and_step() -> None:
    calls = [(block, step) for block in range(200) for step in range(4)]
    drawn = [drawn_distance(420)(block, step) for block, step in calls]
    assert drawn == [drawn_distance(420)(block, step) for block, step in calls]
    assert drawn != [drawn_distance(421)(block, step) for block, step in calls]
    assert set(drawn) == set(range(4, 31))
    assert any(drawn_distance(420)(block, 0) != drawn_distance(420)(block, 1) for block in range(10))


@pytest.fixture(scope="module", name="networks")
def _networks(small_checkpoint: Path) -> tuple[CausalDiT, Conditions]:
    folder = Checkpoint(small_checkpoint)
    generator = torch.Generator().manual_seed(0)
    speech = torch.rand(30_000, generator=generator) - 0.5
    conditions = Conditions(
        text=torch.randn(5, 16, generator=generator),
        motion=torch.randn(16, 19, 8, 8, generator=generator),
        speech=SpeechFeatures(folder.speech_encoder().load(CPU), speech),
    )
    return folder.dit().load(CPU), conditions


def a_plan(*, seed: int = 5, frames: int = 60) -> RolloutPlan:
    return RolloutPlan(
        size=Size(64, 64),
        timeline=Timeline(frames, 24),
        schedule=euler_schedule(3),
        seed=seed,
        replace_reference=True,
        distance=drawn_distance(seed),
    )


def test_noise_is_the_clips_noise_cut_into_blocks(networks: tuple[CausalDiT, Conditions]) -> None:
    rollout = Rollout(*networks, a_plan(seed=5), steps=range(0))
    blocks = list(rollout.plan.timeline.blocks())
    clip_1 = torch.randn((16, 6, 8, 8), generator=torch.Generator().manual_seed(5 + 1))
    assert torch.equal(torch.cat([rollout.noise(blocks[2]), rollout.noise(blocks[3])], dim=1), clip_1)


@torch.inference_mode()
def test_owners_of_single_steps_make_together_what_one_makes_alone(networks: tuple[CausalDiT, Conditions]) -> None:
    alone = [latents for _, latents in sample(Rollout(*networks, a_plan(), steps=range(3)))]
    owners = [Rollout(*networks, a_plan(), steps=range(step, step + 1)) for step in range(3)]
    together: list[Tensor] = []
    for block in a_plan().timeline.blocks():
        latents = owners[0].noise(block)
        for step, owner in enumerate(owners):
            latents = owner.denoise(latents, block, step)
        for owner in owners:
            owner.finished(latents, block)
        together.append(latents)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@torch.inference_mode()
def test_the_portrait_is_replaced_once_after_the_first_clip(
    networks: tuple[CausalDiT, Conditions], monkeypatch: pytest.MonkeyPatch
) -> None:
    dit, conditions = networks
    references: list[Tensor] = []
    prefill = dit.prefill_sink

    def recorded(reference: Tensor, *arguments: object, **options: object) -> object:
        references.append(reference)
        return prefill(reference, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(dit, "prefill_sink", recorded)
    latents = [latents for _, latents in sample(Rollout(dit, conditions, a_plan(frames=84), steps=range(3)))]
    assert len(references) == 2
    assert torch.equal(references[0], conditions.reference)
    assert torch.equal(references[1], latents[0][:, :1])


@torch.inference_mode()
def test_a_position_past_45_000_latent_frames_works(networks: tuple[CausalDiT, Conditions]) -> None:
    plan = a_plan(frames=200_000)
    rollout = Rollout(*networks, plan, steps=range(1))
    first = rollout.plan.timeline.position(0)
    rollout.finished(rollout.noise(first), first)
    block = plan.timeline.position(15_001)
    assert block.first_latent_frame > 45_000
    assert torch.isfinite(rollout.denoise(rollout.noise(block), block, 0)).all()
