"""The whole clip loop against the reference: portrait and voice in, latents and video out, two clips."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import avg_pool2d
from transformers import Wav2Vec2Config

from ray_cluster.program import Seat, Unattended
from serve_app.distributed.mesh import Mesh
from serve_app.distributed.timestep_pipeline import ReferenceReturn
from serve_app.engine.conditioning import MOTION_FRAMES
from serve_app.engine.conditions import Conditions
from serve_app.engine.decoding import PRIMING_LATENTS
from serve_app.engine.messages import WorkingBlock
from serve_app.engine.rollout import ClipNoise, RolloutPlan
from serve_app.engine.sampler import begin_blocks, decode, denoise
from serve_app.media.image import fit_portrait
from serve_app.model.checkpoint import fill
from serve_app.model.config import DiTConfig, VAEConfig
from serve_app.model.dit import CausalDiT
from serve_app.model.flow_match import euler_schedule
from serve_app.model.speech_encoder import SpeechEncoder, SpeechFeatures, to_transformers_names
from serve_app.model.vae import VideoVAE
from serve_app.planning.geometry import FRAMES_PER_LATENT, Size, Timeline, area_size
from serve_app.planning.layout import ParallelLayout
from tests.parity.golden import CPU_FLOAT32, cases, largest_error, load

LATENT_TOLERANCE = 1.5e-5
VIDEO_TOLERANCE = 2.4e-4
VIDEO_MEAN_TOLERANCE = 1e-5
AUDIO_TOLERANCE = 7e-5

PATHS = [path for path in cases("pipeline") if "timestep-forcing" in json.loads(path.read_text())["pipeline"]]


def test_there_is_a_pipelined_case() -> None:
    assert PATHS


class Setting:
    """One pipelined case, its shared inputs and the networks that it names."""

    def __init__(self, path: Path) -> None:
        self.golden = load(path)
        self.inputs = load(path.with_name(f"{self.golden.spec['inputs_from']}.json"))
        spec, shared = self.golden.spec, self.inputs.spec
        self.size = Size(width=shared["width"], height=shared["height"])
        self.timeline = Timeline(spec["num_clips"] * spec["infer_frames"], spec["infer_frames"])
        self.dit = CausalDiT(DiTConfig.from_json(_config_beside(path, shared["dit"])))
        self.dit.load_state_dict(load_file(path.parent / shared["dit"]))
        vae_spec = _json_beside(path, shared["vae"], key="latents_mean")
        statistics = {key: vae_spec[key] for key in ("latents_mean", "latents_std")}
        self.vae = VideoVAE(VAEConfig.from_json(vae_spec["config"] | statistics))
        self.vae.load_state_dict(load_file(path.parent / shared["vae"]))
        self.vae.tuned()
        self.speech_encoder = _speech_encoder(path, shared["wav2vec2"])

    def conditions(self) -> Conditions:
        image = self.inputs.tensors["image_u8"].numpy()
        portrait = torch.from_numpy(fit_portrait(image, size=self.size, fit="area"))
        still = (portrait.permute(2, 0, 1).float() / 127.5 - 1)[:, None].expand(-1, MOTION_FRAMES, -1, -1)
        return Conditions(text=self.inputs.tensors["context"], motion=self.vae.encode(still))

    def voice(self) -> SpeechFeatures:
        return SpeechFeatures(self.speech_encoder, self.inputs.tensors["audio_pcm_s16"].float() / 32768)

    def plan(self) -> RolloutPlan:
        spec = self.golden.spec
        return RolloutPlan(
            size=self.size,
            timeline=self.timeline,
            schedule=euler_schedule(spec["sampling_steps"]),
            seed=spec["seed"],
            replace_reference=True,
            distance=lambda _block, _step: spec["relative_dist"],
            rope_precision=self.inputs.spec["rope_table_precision"],
        )


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_latents_and_video_match_the_reference(path: Path, record_property: Any) -> None:
    setting = Setting(path)
    errors: dict[str, tuple[float, float]] = {}
    with torch.inference_mode():
        conditions = setting.conditions()
        errors |= _condition_errors(setting, conditions) | _noise_errors(setting, conditions)
        latents, video = _render(setting, conditions)
    errors |= _output_errors(setting, latents, video)
    for kind, (error, tolerance) in errors.items():
        record_property(kind, error)
        assert error <= tolerance, f"{kind}: {error:.2e} > {tolerance:.1e}"


def _render(setting: Setting, conditions: Conditions) -> tuple[Tensor, Tensor]:
    plan, control = setting.plan(), Unattended(lambda: False)
    alone = Mesh(ParallelLayout(), Seat(rank=0, num_ranks=1, rendezvous=""), store=None, meet_s=1, collective_s=1)
    begun = begin_blocks(conditions, setting.voice(), plan, control=control, device=alone.device, pause_s=1)
    returns = ReferenceReturn(alone, timeout_s=1)
    denoised = list(denoise(begun, setting.dit, plan, steps=plan.schedule.steps, references=returns, control=control))
    latents = [message.latents for message in denoised if isinstance(message, WorkingBlock)]
    video = [frames for _, frames in decode(iter(denoised), setting.vae, control)]
    return torch.cat(latents, dim=1), torch.cat(video, dim=1)


def _noise_errors(setting: Setting, conditions: Conditions) -> dict[str, tuple[float, float]]:
    noise = ClipNoise(setting.plan(), num_channels=conditions.motion.shape[0])
    clips: dict[int, list[Tensor]] = defaultdict(list)
    for block in setting.timeline.blocks():
        clips[block.clip].append(noise.of(block))
    stored = setting.inputs.tensors
    errors = [
        largest_error(torch.cat(blocks, dim=1), stored[f"clip{clip}.noise"])
        for clip, blocks in clips.items()
        if f"clip{clip}.noise" in stored
    ]
    return {"noise": (max(errors, default=0.0), 0.0)}


def _condition_errors(setting: Setting, conditions: Conditions) -> dict[str, tuple[float, float]]:
    inputs, expected = setting.inputs, setting.golden.tensors
    image_h, image_w, _ = inputs.tensors["image_u8"].shape
    assert area_size(Size(image_w, image_h), inputs.spec["max_area"]) == setting.size
    frames = range(setting.timeline.num_frames)
    audio = setting.voice().frames(frames)
    return {
        "audio": (largest_error(audio, inputs.tensors["audio_emb"][..., : len(frames)]), AUDIO_TOLERANCE),
        "reference": (largest_error(conditions.reference[None], expected["ref_latents0"]), LATENT_TOLERANCE),
        "motion": (largest_error(conditions.motion[None], expected["motion_latents_last19"]), LATENT_TOLERANCE),
        "priming": (
            largest_error(conditions.motion[:, :PRIMING_LATENTS], expected["warmup_motion_first7"]),
            LATENT_TOLERANCE,
        ),
    }


def _output_errors(setting: Setting, latents: Tensor, video: Tensor) -> dict[str, tuple[float, float]]:
    spec, expected = setting.golden.spec, setting.golden.tensors
    per_clip = spec["infer_frames"] // FRAMES_PER_LATENT
    clips = latents.split(per_clip, dim=1)
    assert list(video.shape) == spec["video_shape"]
    frames = video[:, spec["video_frame_indices"]]
    pooled = avg_pool2d(video.transpose(0, 1), 8).transpose(0, 1)
    pooled_difference = (pooled - expected["video_pooled8"]).abs()
    errors = {
        "latents": (
            max(largest_error(clip, expected[f"clip{index}.latents"]) for index, clip in enumerate(clips)),
            LATENT_TOLERANCE,
        ),
        "video": (largest_error(frames, expected["video_frames"]), VIDEO_TOLERANCE),
        "pooled video": (float(pooled_difference.max()), VIDEO_TOLERANCE),
        "pooled video mean": (float(pooled_difference.mean()), VIDEO_MEAN_TOLERANCE),
    }
    if "ref_latents1" in expected:  # a single clip keeps its portrait
        errors["new reference"] = largest_error(latents[None, :, :1], expected["ref_latents1"]), LATENT_TOLERANCE
    return errors


def _json_beside(path: Path, weights: str, *, key: str) -> dict[str, Any]:
    """The JSON beside `weights` that has `key`, preferably one that names them: networks are described there."""
    file = path.parent / weights
    specs = [json.loads(described.read_text()) for described in sorted(file.parent.glob("*.json"))]
    described = [spec for spec in specs if key in spec]
    return next((spec for spec in described if spec.get("weights", "").split(" ")[0] == file.name), described[0])


def _config_beside(path: Path, weights: str) -> dict[str, Any]:
    return _json_beside(path, weights, key="config")["config"]


def _speech_encoder(path: Path, weights: str) -> SpeechEncoder:
    spec = _json_beside(path, weights, key="weights")
    encoder = SpeechEncoder(Wav2Vec2Config(**spec["config"])).eval()
    tensors = load_file(path.parent / weights)
    return fill(encoder, to_transformers_names(tensors.items()), CPU_FLOAT32, source=weights)
