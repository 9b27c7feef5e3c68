"""Applies a layout to the networks from outside: `model` knows nothing of ranks."""

from __future__ import annotations

from dataclasses import replace

import torch

from serve_app.distributed.layer_streaming import stream_units
from serve_app.distributed.mesh import Mesh
from serve_app.distributed.ulysses import Ulysses
from serve_app.distributed.units import all_units
from serve_app.distributed.vae_parallel import split_decoder
from serve_app.model.checkpoint import Network, Placement
from serve_app.model.dit import CausalDiT
from serve_app.model.vae import VideoVAE
from serve_app.planning.layout import check_layout


def load_dit(network: Network[CausalDiT], mesh: Mesh, placement: Placement) -> CausalDiT:
    """Loads what this rank keeps of the transformer; raises CheckpointError, InvalidRequestError."""
    layout = mesh.layout
    check_layout(layout, num_heads=network.module.config.num_heads, sample_steps=layout.stages)
    parallelize_dit(network.module, mesh)
    if layout.weight_shards > 1:
        from serve_app.distributed.weight_sharding import keep_own_part

        return network.load(placement, keep=keep_own_part)
    if layout.offload == "none":
        return network.load(placement)
    dit = network.load(replace(placement, device=torch.device("cpu")))
    stream_units(dit, placement.device)
    return dit


def parallelize_dit(dit: CausalDiT, mesh: Mesh) -> CausalDiT:
    """Shares a transformer, still on the meta device, with the ranks of the ulysses axis; returns it."""
    if mesh.ulysses is None:
        return dit
    if mesh.shards is not None:
        from serve_app.distributed.weight_sharding import shard_units  # a second to import

        shard_units(dit, mesh.shards, mesh.device.type, mesh.traffic)
    ulysses = Ulysses(mesh.ulysses, mesh.traffic)
    dit.trunk = ulysses.around_trunk(dit.trunk)
    for layer in dit.layers:
        layer.self_attn.core = ulysses.around_core(layer.self_attn.core)
    return dit


def parallelize_vae(vae: VideoVAE, mesh: Mesh) -> VideoVAE:
    """Gives this rank its strip of the picture where several ranks decode; returns the VAE."""
    if mesh.decoders is not None and mesh.is_decoder:
        split_decoder(vae, mesh.decoders, mesh.traffic)
    return vae


def largest_unit_bytes(dit: CausalDiT) -> int:
    """Returns the bytes of the largest unit when it is whole: what sharding gathers and offloading streams at once."""
    return max(unit.num_bytes for unit in all_units(dit))
