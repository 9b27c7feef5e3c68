"""The VAE beyond the reference cases: pixel folding, chunk borders, streams that do not meet."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from serve_app.model.config import VAEConfig
from serve_app.model.vae import Stream, VideoVAE, patchify, unpatchify

FOLDED = VAEConfig(
    dim=4, decoder_dim=8, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True), patch_size=2
)
PLAIN = VAEConfig(dim=4, decoder_dim=4)


def a_vae(config: VAEConfig) -> VideoVAE:
    torch.manual_seed(0)
    return VideoVAE(config).eval().requires_grad_(False)


def test_folding_orders_channels_by_colour_column_row() -> None:
    picture = torch.arange(3 * 4 * 6).float().reshape(1, 3, 1, 4, 6)
    folded = patchify(picture, 2)
    assert folded.shape == (1, 12, 1, 2, 3)
    for colour, column, row in ((0, 0, 0), (1, 1, 0), (2, 0, 1)):
        assert torch.equal(folded[0, colour * 4 + column * 2 + row, 0], picture[0, colour, 0, row::2, column::2])
    assert torch.equal(unpatchify(folded, 2), picture)


@pytest.mark.parametrize("config", [FOLDED, PLAIN], ids=["folded", "plain"])
def test_shapes_follow_the_strides(config: VAEConfig) -> None:
    vae = a_vae(config)
    latents = vae.encode(torch.zeros(3, 9, 32, 48))
    assert latents.shape == (16, 3, 4, 6)
    assert vae.decode(latents).shape == (3, 9, 32, 48)


@pytest.mark.parametrize("borders", [(0, 1, 5), (0, 2, 5), (0, 3, 4, 5), (0, 5)])
@pytest.mark.parametrize("config", [FOLDED, PLAIN], ids=["folded", "plain"])
def test_decoding_in_chunks_equals_decoding_at_once(config: VAEConfig, borders: tuple[int, ...]) -> None:
    vae, stream = a_vae(config), Stream()
    latents = torch.randn(16, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    chunks = [vae.decode(latents[:, start:stop], stream) for start, stop in pairwise(borders)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), vae.decode(latents), atol=2e-5, rtol=0)


def test_the_first_latent_of_a_still_is_that_of_the_single_picture() -> None:
    vae = a_vae(PLAIN)
    picture = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    still = vae.encode(picture.expand(-1, 9, -1, -1))
    assert torch.equal(still[:, :1], vae.encode(picture))


def test_two_streams_do_not_meet() -> None:
    vae, generator = a_vae(FOLDED), torch.Generator().manual_seed(1)
    one, other = torch.randn(2, 16, 4, 4, 4, generator=generator)
    alone = [vae.decode(video) for video in (one, other)]
    streams = Stream(), Stream()
    mixed = [
        [vae.decode(video[:, start : start + 2], stream) for video, stream in zip((one, other), streams, strict=True)]
        for start in (0, 2)
    ]
    for index, expected in enumerate(alone):
        together = torch.cat([chunk[index] for chunk in mixed], dim=1)
        torch.testing.assert_close(together, expected, atol=2e-5, rtol=0)
