"""Timestep pipeline: stages own denoising steps, blocks pass from stage to stage.

Call (block, step) needs only (block, step - 1), from the stage before, and (block - 1, step), which this stage made.
One thing flows back: the first latent frame of the finished block 0, every stage's reference from clip 1 on.
"""

from __future__ import annotations

from torch import Tensor

from serve_app.distributed.channel import Packet
from serve_app.distributed.mesh import Mesh


class ReferenceReturn:
    """Brings the new reference of one video from the last stage to all stages."""

    def __init__(self, mesh: Mesh, *, timeout_s: float) -> None:
        self._mesh = mesh
        self._timeout_s = timeout_s
        self._reference: Tensor | None = None
        self._is_owed = False

    def block_0_passed(self, latents_CTHW: Tensor) -> None:
        """Called by every stage when block 0 leaves it; on the last one these are the finished latents."""
        if self._mesh.last_stage is not None:
            self._is_owed = True
            return
        self._reference = latents_CTHW[:, :1].cpu()  # by gloo: see Mesh.earlier_stages
        for stage in self._mesh.earlier_stages:
            stage.send(Packet(kind=0, tensors=(self._reference,)))

    def take(self) -> Tensor:
        """Returns the new reference [16, 1, h, w]; waits for it on all stages but the last. Raises RankError."""
        if self._is_owed:
            assert self._mesh.last_stage is not None
            self._is_owed = False
            (self._reference,) = self._mesh.last_stage.receive(timeout_s=self._timeout_s).tensors
        assert self._reference is not None, "clip 1 began before block 0 was finished"
        return self._reference.to(self._mesh.device)

    def settle(self) -> None:
        """Takes what was sent and not taken, so that it never meets the next video."""
        if self._is_owed:
            self.take()
