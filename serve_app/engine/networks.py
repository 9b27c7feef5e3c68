"""The networks of one rank: those that its role needs, in its layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from serve_app.distributed.mesh import Mesh
from serve_app.distributed.parallelize import largest_unit_bytes, load_dit, parallelize_vae
from serve_app.model.checkpoint import Checkpoint, Placement, default_placement
from serve_app.model.dit import CausalDiT
from serve_app.model.tiny import TINY, tiny_checkpoint
from serve_app.model.vae import VideoVAE
from serve_app.planning.layout import Role
from serve_app.task import CARD_BYTES

if TYPE_CHECKING:
    from serve_app.engine.conditioning import Conditioner


@dataclass(frozen=True, eq=False)
class Networks:
    """What a rank has loaded: a transformer on stages, the VAE where pictures are en- or decoded, the encoders on
    the source. Shared by all videos; they keep nothing of any.
    """

    dit: CausalDiT | None
    vae: VideoVAE | None
    conditioner: Conditioner | None

    def facts(self, mesh: Mesh) -> Mapping[str, int | float | str]:
        """Returns figures for the start report, bytes among them."""
        facts: dict[str, int | float | str] = {"device": mesh.device.type, "layout": str(mesh.layout)}
        facts |= {f"{name}_bytes": held_bytes(network) for name, network in self._by_name() if network is not None}
        if self.dit is not None:
            facts["largest_unit_bytes"] = largest_unit_bytes(self.dit)
        if mesh.device.type == "cuda":
            facts["allocated_bytes"] = torch.cuda.memory_allocated(mesh.device)
            _, facts[CARD_BYTES] = torch.cuda.mem_get_info(mesh.device)
        return facts

    def _by_name(self) -> Iterator[tuple[str, nn.Module | None]]:
        yield "dit", self.dit
        yield "vae", self.vae
        if self.conditioner is not None:
            yield "text_encoder", self.conditioner.text_encoder
            yield "speech_encoder", self.conditioner.speech_encoder


def held_bytes(network: nn.Module) -> int:
    """Returns the bytes of weights in this process, wherever they lie: of a sharded one, this rank's part."""
    parts = (
        parameter.to_local() if hasattr(parameter, "to_local") else parameter for parameter in network.parameters()
    )
    return sum(part.numel() * part.element_size() for part in parts)


def load_networks(checkpoint: str, cache_dir: Path, mesh: Mesh) -> Networks:
    """Loads from a checkpoint folder, or the built-in model when `checkpoint` is "tiny"; raises CheckpointError.

    On a GPU weights are bfloat16, on the CPU float32.
    """
    folder = tiny_checkpoint(cache_dir) if checkpoint == TINY.name else Path(checkpoint)
    source = Checkpoint(folder)
    placement = default_placement()
    dit = load_dit(source.dit(), mesh, placement) if mesh.place.role is Role.STAGE else None
    vae = parallelize_vae(source.vae().load(placement).tuned(), mesh) if mesh.is_source or mesh.is_decoder else None
    return Networks(dit, vae, _load_conditioner(folder, dit, vae, placement) if mesh.is_source else None)


def _load_conditioner(folder: Path, dit: CausalDiT | None, vae: VideoVAE | None, placement: Placement) -> Conditioner:
    from serve_app.engine.conditioning import load_conditioner  # transformers: seconds that other ranks save
    from serve_app.model.full_checkpoint import FullCheckpoint

    assert dit is not None
    assert vae is not None
    return load_conditioner(FullCheckpoint(folder), vae, placement, text_len=dit.config.text_len)
