"""The causal video VAE (Wan family): 4x in time, 8x8 in space, streaming in both directions.

Every causal layer takes its past from a `Stream`, an object of one video, so the network itself has no
state. The first frame of a stream stands alone: one latent frame for one video frame; each later latent
frame stands for four. Parameter names are the published ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from serve_app.model.config import VAEConfig

_TEMPORAL_KERNEL = 3


class Stream:
    """What the causal layers of one direction remember of one video."""

    def __init__(self) -> None:
        self._past: dict[nn.Module, Tensor] = {}

    def get(self, layer: nn.Module) -> Tensor | None:
        return self._past.get(layer)

    def put(self, layer: nn.Module, past: Tensor) -> None:
        self._past[layer] = past.clone()  # a slice would keep its whole chunk alive


class VideoVAE(nn.Module):
    """Encodes video [3, T, H, W] in [-1, 1] to normalised latents [16, 1 + (T - 1) // 4, H / 8, W / 8] and back."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.decoder = _Decoder(config)

    def tuned(self) -> Self:
        """Prepares the decoder, which works for every block, for speed; returns itself.

        Channels last in all its weights; on the CPU oneDNN, where torch would take a far slower loop for small
        pictures. The encoder works once per video and keeps the digits that this costs (1e-6).
        """
        for module in self.decoder.modules():
            if isinstance(module, CausalConv3d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
                module.use_onednn = module.weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
            elif isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        return self

    def encode(self, video_CTHW: Tensor, stream: Stream | None = None) -> Tensor:
        """Returns normalised latents (the mean, no noise), float32.

        A chunk that starts a stream has 1 + 4n frames, a later chunk 4n; frames beyond are ignored.
        """
        stream = Stream() if stream is None else stream
        chunks = [self._encode_chunk(chunk, stream) for chunk in self._encoder_chunks(video_CTHW, stream)]
        return torch.cat(chunks, dim=1)

    def decode(self, latents_CTHW: Tensor, stream: Stream | None = None) -> Tensor:
        """Returns video clamped to [-1, 1], float32: 4 frames per latent frame, 1 for the first of a stream."""
        return self.decode_unclamped(latents_CTHW, Stream() if stream is None else stream).clamp_(-1, 1)

    def decode_unclamped(self, latents_CTHW: Tensor, stream: Stream) -> Tensor:
        """Decodes one latent frame at a time: a third of the memory of a block at once, and as fast."""
        return torch.cat([self._decode_chunk(chunk, stream) for chunk in latents_CTHW.split(1, dim=1)], dim=1)

    def _decode_chunk(self, latents_CTHW: Tensor, stream: Stream) -> Tensor:
        mean, std = self._statistics(latents_CTHW.device)
        z = (latents_CTHW.float() * std + mean).to(self.conv2.weight.dtype)
        return unpatchify(self.decoder(self.conv2(z[None], stream), stream), self.config.patch_size)[0].float()

    def _encode_chunk(self, video_CTHW: Tensor, stream: Stream) -> Tensor:
        x = patchify(video_CTHW[None].to(self.conv1.weight.dtype), self.config.patch_size)
        z = self.conv1(self.encoder(x, stream), stream)[0, : self.config.z_dim].float()
        mean, std = self._statistics(z.device)
        return (z - mean) / std

    def _encoder_chunks(self, video_CTHW: Tensor, stream: Stream) -> Iterator[Tensor]:
        """Cuts a chunk into single latent frames, so that memory does not grow with its length."""
        start = 0
        if stream.get(self.encoder.conv1) is None:
            yield video_CTHW[:, :1]
            start = 1
        for first in range(start, video_CTHW.shape[1] - 3, 4):
            yield video_CTHW[:, first : first + 4]

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        shape = (-1, 1, 1, 1)
        mean = torch.tensor(self.config.latents_mean, device=device).view(shape)
        return mean, torch.tensor(self.config.latents_std, device=device).view(shape)


class CausalConv3d(nn.Conv3d):
    """A 3D convolution whose past comes from the stream; the future is never seen. Keeps the spatial size."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int | tuple[int, int, int]) -> None:
        size = (kernel,) * 3 if isinstance(kernel, int) else kernel
        super().__init__(in_dim, out_dim, size, padding=(0, size[1] // 2, size[2] // 2))
        self.use_onednn = False

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:  # type: ignore[override]
        if self.kernel_size[0] == 1:
            return self._convolve(x_BCTHW)
        past = stream.get(self)
        if past is None:
            past = x_BCTHW.new_zeros(*x_BCTHW.shape[:2], _TEMPORAL_KERNEL - 1, *x_BCTHW.shape[3:])
        x_BCTHW = torch.cat((past, x_BCTHW), dim=2)
        stream.put(self, x_BCTHW[:, :, 1 - _TEMPORAL_KERNEL :])
        return self._convolve(x_BCTHW)

    def _convolve(self, x_BCTHW: Tensor) -> Tensor:
        if self.use_onednn:
            return torch.ops.aten.mkldnn_convolution(
                x_BCTHW, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
            )
        return super().forward(x_BCTHW)


class _ChannelNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma over the channels; `spatial_dims` is the rank that gamma broadcasts over."""

    def __init__(self, dim: int, spatial_dims: int) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1) * self.scale * self.gamma


class _ResidualBlock(nn.Module):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _ChannelNorm(in_dim, 3),
            nn.SiLU(),
            CausalConv3d(in_dim, out_dim, 3),
            _ChannelNorm(out_dim, 3),
            nn.SiLU(),
            nn.Identity(),  # a dropout in training; keeps the published numbering
            CausalConv3d(out_dim, out_dim, 3),
        )
        self.shortcut = nn.Identity() if in_dim == out_dim else CausalConv3d(in_dim, out_dim, 1)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        shortcut = run([self.shortcut], x, stream)
        return run(self.residual, x, stream).add_(shortcut)


class _SpatialAttention(nn.Module):
    """Single-head attention over the pixels of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = _ChannelNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        frames = x_BCTHW.shape[2]
        x = _fold_time(x_BCTHW)
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        out = functional.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x_BCTHW + _unfold_time(self.proj(out), frames)


class _Upsample(nn.Module):
    """Doubles height and width and, with `temporal`, the frames after the first of the stream."""

    def __init__(self, dim: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest-exact"), nn.Conv2d(dim, dim // 2, 3, padding=1)
        )
        self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if temporal else None

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:
        if self.time_conv is not None:
            x_BCTHW = self._double_frames(x_BCTHW, self.time_conv, stream)
        return _unfold_time(self.resample(_fold_time(x_BCTHW)), x_BCTHW.shape[2])

    def _double_frames(self, x: Tensor, time_conv: CausalConv3d, stream: Stream) -> Tensor:
        """The first frame of a stream passes alone, and is not part of what later frames remember."""
        alone = 0
        if stream.get(self) is None:
            stream.put(self, x.new_zeros(()))
            alone = 1
        if x.shape[2] == alone:
            return x
        pairs = time_conv(x[:, :, alone:], stream).unflatten(1, (2, -1))  # [B, 2, C, T, H, W]
        doubled = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        return torch.cat((x[:, :, :alone], doubled), dim=2)


class _Downsample(nn.Module):
    """Halves height and width and, with `temporal`, the frames after the first of the stream."""

    def __init__(self, dim: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x_BCTHW: Tensor, stream: Stream) -> Tensor:
        x = _unfold_time(self.resample(_fold_time(x_BCTHW)), x_BCTHW.shape[2])
        return x if self.time_conv is None else self._halve_frames(x, self.time_conv, stream)

    def _halve_frames(self, x: Tensor, time_conv: nn.Conv3d, stream: Stream) -> Tensor:
        last = stream.get(self)
        stream.put(self, x[:, :, -1:])
        if last is not None:
            return time_conv(torch.cat((last, x), dim=2))
        if x.shape[2] == 1:
            return x
        return torch.cat((x[:, :, :1], time_conv(x)), dim=2)


class _Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.dim * multiplier for multiplier in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(3 * config.patch_size**2, widths[0], 3)
        layers: list[nn.Module] = []
        for level, (in_dim, out_dim) in enumerate(pairwise(widths)):
            layers += _residual_blocks(in_dim, out_dim, config.num_res_blocks)
            if level < len(config.dim_mult) - 1:
                layers.append(_Downsample(out_dim, temporal=config.temporal_downsample[level]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], 2 * config.z_dim)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        return run([self.conv1, *self.downsamples, *self.middle, *self.head], x, stream)


class _Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.decoder_dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        temporal = config.temporal_downsample[::-1]
        self.conv1 = CausalConv3d(config.z_dim, widths[0], 3)
        self.middle = _middle(widths[0])
        layers: list[nn.Module] = []
        for level, (in_dim, out_dim) in enumerate(pairwise(widths)):
            # every level but the first comes out of an upsampling, which halves the channels
            layers += _residual_blocks(in_dim if level == 0 else in_dim // 2, out_dim, config.num_res_blocks + 1)
            if level < len(config.dim_mult) - 1:
                layers.append(_Upsample(out_dim, temporal=temporal[level]))
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(widths[-1], 3 * config.patch_size**2)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        return run([self.conv1, *self.middle, *self.upsamples, *self.head], x, stream)


def _residual_blocks(in_dim: int, out_dim: int, count: int) -> list[nn.Module]:
    return [_ResidualBlock(in_dim if index == 0 else out_dim, out_dim) for index in range(count)]


def _middle(dim: int) -> nn.Sequential:
    return nn.Sequential(_ResidualBlock(dim, dim), _SpatialAttention(dim), _ResidualBlock(dim, dim))


def _head(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(_ChannelNorm(in_dim, 3), nn.SiLU(), CausalConv3d(in_dim, out_dim, 3))


def run(layers: nn.Sequential | list[nn.Module], x: Tensor, stream: Stream) -> Tensor:
    """Applies layers in order, handing the stream to those that remember."""
    for layer in layers:
        x = layer(x, stream) if isinstance(layer, _STREAMING) else layer(x)
    return x


_STREAMING = (CausalConv3d, _ResidualBlock, _Upsample, _Downsample)


def patchify(x_BCTHW: Tensor, size: int) -> Tensor:
    """Folds size x size pixels into channels, in the order (channel, column, row)."""
    if size == 1:
        return x_BCTHW
    x = x_BCTHW.unflatten(4, (-1, size)).unflatten(3, (-1, size))  # [B, C, T, h, q, w, r]
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x_BCTHW: Tensor, size: int) -> Tensor:
    """Undoes `patchify`."""
    if size == 1:
        return x_BCTHW
    x = x_BCTHW.unflatten(1, (-1, size, size))  # [B, C, r, q, T, h, w]
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def _fold_time(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.transpose(1, 2).flatten(0, 1)


def _unfold_time(x: Tensor, frames: int) -> Tensor:
    return x.unflatten(0, (-1, frames)).transpose(1, 2)
