"""An independent implementation of the VAE agrees: AutoencoderKLWan of diffusers, through its own key conversion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from serve_app.model.config import VAEConfig
from serve_app.model.vae import Stream, VideoVAE

ENCODE_TOLERANCE = 1.2e-6
DECODE_TOLERANCE = 1.1e-4

# The key conversion knows the published number of levels and blocks; widths are free.
CONFIG = VAEConfig(dim=8, decoder_dim=8)


@pytest.fixture(scope="module", name="pair")
def _pair() -> tuple[VideoVAE, AutoencoderKLWan]:
    torch.manual_seed(0)
    ours = VideoVAE(CONFIG).eval().requires_grad_(False)
    oracle = AutoencoderKLWan(
        base_dim=CONFIG.dim,
        z_dim=CONFIG.z_dim,
        dim_mult=list(CONFIG.dim_mult),
        num_res_blocks=CONFIG.num_res_blocks,
        attn_scales=[],
        temperal_downsample=list(CONFIG.temporal_downsample),
    ).eval()
    oracle.load_state_dict(convert_wan_vae_to_diffusers(dict(ours.state_dict())))
    return ours.tuned(), oracle


def _statistics() -> tuple[torch.Tensor, torch.Tensor]:
    shape = (-1, 1, 1, 1)
    return torch.tensor(CONFIG.latents_mean).view(shape), torch.tensor(CONFIG.latents_std).view(shape)


@torch.inference_mode()
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 64), (9, 32, 48), (17, 48, 32)])
def test_encoding_agrees(pair: tuple[VideoVAE, AutoencoderKLWan], frames: int, height: int, width: int) -> None:
    ours, oracle = pair
    video = torch.rand(3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = _statistics()
    expected = (oracle.encode(video[None]).latent_dist.mode()[0] - mean) / std
    torch.testing.assert_close(ours.encode(video), expected, atol=ENCODE_TOLERANCE, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [[1], [5], [1, 3, 3], [3, 3, 1, 2]])
def test_decoding_agrees_also_in_chunks(pair: tuple[VideoVAE, AutoencoderKLWan], chunks: list[int]) -> None:
    ours, oracle = pair
    latents = torch.randn(16, sum(chunks), 4, 6, generator=torch.Generator().manual_seed(1))
    mean, std = _statistics()
    expected = oracle.decode((latents * std + mean)[None]).sample[0]
    stream = Stream()
    found = torch.cat([ours.decode(chunk, stream) for chunk in latents.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(found, expected, atol=DECODE_TOLERANCE, rtol=0)


def test_the_oracle_notices_a_mistake(pair: tuple[VideoVAE, AutoencoderKLWan]) -> None:
    ours, oracle = pair
    wrong = VideoVAE(replace(CONFIG, latents_std=CONFIG.latents_std[::-1])).eval()
    wrong.load_state_dict(ours.state_dict())
    mean, std = _statistics()
    latents = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = oracle.decode((latents * std + mean)[None]).sample[0]
        assert (wrong.decode(latents) - expected).abs().max() > 10 * DECODE_TOLERANCE
