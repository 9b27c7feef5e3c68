"""The rollout's rules: seeded distances, noise by clip, and calls that any owner of a step may make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ray_cluster.program import Unattended
from serve_app.engine.conditions import Conditions
from serve_app.engine.messages import WorkingBlock
from serve_app.engine.rollout import ClipNoise, Rollout, RolloutPlan, drawn_distance
from serve_app.engine.sampler import begin_blocks, denoise
from serve_app.model.checkpoint import Placement
from serve_app.model.dit import CausalDiT
from serve_app.model.flow_match import euler_schedule
from serve_app.model.full_checkpoint import FullCheckpoint
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


@dataclass(frozen=True, eq=False)
class Setting:
    """What rollouts of one video share."""

    dit: CausalDiT
    conditions: Conditions
    voice: SpeechFeatures

    def rollout(self, plan: RolloutPlan, *, steps: range) -> Rollout:
        return Rollout(self.dit, self.conditions, plan, steps=steps)

    def sample(self, plan: RolloutPlan, *, owners: list[range]) -> list[Tensor]:
        """Returns the latents of every block, made by stages that own these steps, chained in this process."""
        control = Unattended(lambda: False)
        messages = begin_blocks(
            self.conditions, self.voice, plan, control=control, device=torch.device("cpu"), pause_s=1
        )
        last = LocalReturn()
        for steps in owners:
            messages = denoise(messages, self.dit, plan, steps=steps, references=last, control=control)
        return [message.latents for message in messages if isinstance(message, WorkingBlock)]


class LocalReturn:
    """The new reference where all stages are in one process: what left the last stage most recently."""

    def __init__(self) -> None:
        self._reference: Tensor | None = None

    def block_0_passed(self, latents_CTHW: Tensor) -> None:  # noqa: N803
        self._reference = latents_CTHW[:, :1]

    def take(self) -> Tensor:
        assert self._reference is not None
        return self._reference

    def settle(self) -> None:
        """Nothing is under way."""


@pytest.fixture(scope="module", name="setting")
def _setting(small_checkpoint: Path) -> Setting:
    folder = FullCheckpoint(small_checkpoint)
    generator = torch.Generator().manual_seed(0)
    speech = torch.rand(30_000, generator=generator) - 0.5
    conditions = Conditions(
        text=torch.randn(5, 16, generator=generator), motion=torch.randn(16, 19, 8, 8, generator=generator)
    )
    return Setting(folder.dit().load(CPU), conditions, voice=SpeechFeatures(folder.speech_encoder().load(CPU), speech))


def a_plan(*, seed: int = 5, frames: int = 60) -> RolloutPlan:
    return RolloutPlan(
        size=Size(64, 64),
        timeline=Timeline(frames, 24),
        schedule=euler_schedule(3),
        seed=seed,
        replace_reference=True,
        distance=drawn_distance(seed),
    )


def test_noise_is_the_clips_noise_cut_into_blocks() -> None:
    noise = ClipNoise(a_plan(seed=5), num_channels=16)
    blocks = list(a_plan().timeline.blocks())
    clip_1 = torch.randn((16, 6, 8, 8), generator=torch.Generator().manual_seed(5 + 1))
    assert torch.equal(torch.cat([noise.of(blocks[2]), noise.of(blocks[3])], dim=1), clip_1)


@torch.inference_mode()
def test_owners_of_single_steps_make_together_what_one_makes_alone(setting: Setting) -> None:
    alone = setting.sample(a_plan(), owners=[range(3)])
    together = setting.sample(a_plan(), owners=[range(step, step + 1) for step in range(3)])
    assert len(alone) == 5
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@torch.inference_mode()
def test_the_portrait_is_replaced_once_after_the_first_clip(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    references: list[Tensor] = []
    prefill = setting.dit.prefill_sink

    def recorded(reference: Tensor, *arguments: object, **options: object) -> object:
        references.append(reference)
        return prefill(reference, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(setting.dit, "prefill_sink", recorded)
    latents = setting.sample(a_plan(frames=84), owners=[range(3)])
    assert len(references) == 2
    assert torch.equal(references[0], setting.conditions.reference)
    assert torch.equal(references[1], latents[0][:, :1])


@torch.inference_mode()
def test_a_position_past_45_000_latent_frames_works(setting: Setting) -> None:
    plan = a_plan(frames=200_000)
    rollout = setting.rollout(plan, steps=range(1))
    block = plan.timeline.position(15_001)
    assert block.first_latent_frame > 45_000
    rollout.begin(block, torch.zeros(1, 25, 16, 12))
    assert torch.isfinite(rollout.denoise(ClipNoise(plan, num_channels=16).of(block), 0)).all()
