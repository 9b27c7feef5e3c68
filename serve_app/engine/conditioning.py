"""Conditioning: prompt, portrait and voice become what the denoiser understands. One rank of a gang does it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from serve_app.engine.conditions import Conditions
from serve_app.model.checkpoint import Placement
from serve_app.model.full_checkpoint import FullCheckpoint
from serve_app.model.reference import MOTION_LATENTS
from serve_app.model.speech_encoder import SpeechEncoder, SpeechFeatures
from serve_app.model.text_encoder import PromptTokenizer, TextEncoder
from serve_app.model.vae import VideoVAE
from serve_app.model.visit import run_on
from serve_app.planning.geometry import FRAMES_PER_LATENT
from serve_app.task import RenderTask

MOTION_FRAMES = 1 + (MOTION_LATENTS - 1) * FRAMES_PER_LATENT
"""The portrait stands still for this many frames before the video begins."""


@dataclass(frozen=True, eq=False)
class Conditioner:
    """The encoders, shared by all videos; they keep nothing of any."""

    tokenizer: PromptTokenizer
    text_encoder: TextEncoder
    speech_encoder: SpeechEncoder
    vae: VideoVAE

    def conditions(self, task: RenderTask) -> Conditions:
        device = self.vae.conv1.weight.device
        return Conditions(
            text=run_on(device, self.text_encoder, self.tokenizer(task.prompt)),
            motion=self.vae.encode(_still(task, device)),
        )

    def voice(self, task: RenderTask) -> SpeechFeatures:
        """Returns what answers the features of the speech, block by block."""
        device = self.vae.conv1.weight.device
        return SpeechFeatures(self.speech_encoder, torch.from_numpy(task.speech), device=device)


def load_conditioner(checkpoint: FullCheckpoint, vae: VideoVAE, placement: Placement, *, text_len: int) -> Conditioner:
    """Loads the encoders; the VAE is the one that decodes as well.

    Those of text and speech stay on the CPU and visit the GPU: the one is needed once per video, the other every
    8 seconds of it, and the transformer needs the memory. The speech encoder runs in float32, as it was trained.
    """
    on_host = replace(placement, device=torch.device("cpu"))
    return Conditioner(
        tokenizer=checkpoint.tokenizer(text_len),
        text_encoder=checkpoint.text_encoder().load(on_host),
        speech_encoder=checkpoint.speech_encoder().load(replace(on_host, dtype=torch.float32)),
        vae=vae,
    )


def _still(task: RenderTask, device: torch.device) -> Tensor:
    """Returns the portrait as a video [3, 73, H, W] in [-1, 1] that takes the memory of one frame."""
    pixels_HWC = torch.from_numpy(task.image).to(device)
    frame_CHW = pixels_HWC.permute(2, 0, 1).float() / 127.5 - 1
    return frame_CHW[:, None].expand(-1, MOTION_FRAMES, -1, -1)
