"""VAE parallel: several decoders, each with a strip of the picture's width.

What sees the whole picture (the first convolution, the middle with its attention) runs whole on every rank. From the
first up-block on a rank keeps its columns; before each 3x3 convolution neighbours trade one column at their border, so
every pixel is computed from the same numbers as on one rank.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, distributed, nn

from serve_app.distributed.mesh import Axis
from serve_app.distributed.traffic import Traffic
from serve_app.errors import InvalidRequestError
from serve_app.model.vae import CausalConv3d, Stream, VideoVAE
from serve_app.planning.layout import share


def split_decoder(vae: VideoVAE, axis: Axis, traffic: Traffic) -> None:
    """Makes `vae.decode` answer this rank's strip of the picture: [3, T, H, width of the strip]."""
    up_blocks = vae.decoder.upsamples
    up_blocks[0].register_forward_pre_hook(_Cut(axis))
    border = _Border(axis, traffic)
    for module in (*up_blocks.modules(), *vae.decoder.head.modules()):
        if isinstance(module, CausalConv3d | nn.Conv2d) and module.kernel_size[-1] > 1:
            module.padding = (*cast("tuple[int, ...]", module.padding)[:-1], 0)
            module.register_forward_pre_hook(border)


class _Cut:
    """A hook that narrows the picture to this rank's columns; widths of ranks differ by one column at most."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, Stream]) -> tuple[Tensor, Stream]:
        x_BCTHW, stream = inputs
        columns = x_BCTHW.shape[-1]
        if columns < self._axis.size:
            raise InvalidRequestError(
                f"{columns} latent columns cannot be shared by {self._axis.size} decoding ranks",
                remedy=f"use vae={columns} at most for this size",
                param="layout",
            )
        own = share(columns, self._axis.size, self._axis.index)
        return x_BCTHW[..., own.start : own.stop].contiguous(), stream


class _Border:
    """A hook that puts a column beside each end of the strip: the neighbour's, or zeros at the picture's end."""

    def __init__(self, axis: Axis, traffic: Traffic) -> None:
        self._axis = axis
        self._traffic = traffic

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = inputs
        left, right = self._neighbours(x)
        return torch.cat((left, x, right), dim=-1), *rest

    def _neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found, exchanges = [], []
        for step, own in ((-1, x[..., :1]), (1, x[..., -1:])):
            column = torch.zeros_like(own, memory_format=torch.contiguous_format)
            found.append(column)
            if 0 <= self._axis.index + step < self._axis.size:
                peer, sent = self._axis.peers[self._axis.index + step].rank, own.contiguous()
                exchanges.append(distributed.P2POp(distributed.isend, sent, peer, self._axis.group))
                exchanges.append(distributed.P2POp(distributed.irecv, column, peer, self._axis.group))
                self._traffic.add("vae borders", sent.nbytes)
        for work in distributed.batch_isend_irecv(exchanges):
            work.wait()
        return found[0], found[1]
