"""Weight shards: each rank of the ulysses axis keeps a part of every unit and gathers one unit at a time (FSDP2)."""

from __future__ import annotations

from itertools import zip_longest
from typing import cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from serve_app.distributed.mesh import Axis
from serve_app.distributed.traffic import Traffic
from serve_app.distributed.units import Unit, all_units
from serve_app.model.dit import CausalDiT


def shard_units(dit: CausalDiT, axis: Axis, device_type: str, traffic: Traffic) -> None:
    """Shards a transformer on the meta device; loading then keeps this rank's part of each tensor.

    What belongs to no unit (embeddings, head) stays whole on every rank: gathered as one root unit it would take
    gigabytes for moments. The root has no weights of its own; it binds the units.
    """
    mesh = DeviceMesh.from_group(axis.group, device_type, mesh_dim_names=("shards",))
    units = all_units(dit)
    in_units = {parameter for unit in units for parameter in unit.module.parameters()}
    for unit in units:
        _count_gathering(unit, axis.size, traffic)
        fully_shard(unit.module, mesh=mesh)
        for method in unit.other_methods:
            register_fsdp_forward_method(unit.module, method)
    for layer, following in zip_longest(dit.layers, dit.layers[1:]):
        _gather_ahead(layer, following)
    fully_shard(dit, mesh=mesh, ignored_params=set(dit.parameters()) - in_units)
    for entry in ("embed_text", "embed_audio", "prefill_sink"):  # units may only run below their root
        register_fsdp_forward_method(dit, entry)


def _gather_ahead(layer: nn.Module, following: nn.Module | None) -> None:
    """Gathers a layer before it runs, and begins to gather the next one while it runs.

    By itself FSDP2 overlaps too, but keeps the buffer of the unit before: three units at once instead of two.
    What is not sure to run next, an injector or another call, is not gathered ahead: it would stay in memory.
    """

    def gather(*_: object) -> None:
        cast(FSDPModule, layer).unshard()
        if following is not None:
            cast(FSDPModule, following).unshard(async_op=True)

    layer.register_forward_pre_hook(gather, prepend=True)


def keep_own_part(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """Returns this rank's rows of a tensor whose parameter is sharded, the whole tensor otherwise."""
    if not isinstance(parameter, DTensor):
        return tensor
    mesh = parameter.device_mesh
    rows, index = tensor.chunk(mesh.size()), mesh.get_local_rank()
    own = rows[index] if index < len(rows) else tensor[:0]
    # A copy: a view would keep the whole tensor in memory.
    return DTensor.from_local(
        own.clone().to(mesh.device_type),
        mesh,
        parameter.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def _count_gathering(unit: Unit, num_ranks: int, traffic: Traffic) -> None:
    """Counts what this rank sends whenever the unit is gathered: its part, to each of the others."""

    def count(*_: object) -> None:
        traffic.add("weight shards", unit.num_bytes * (num_ranks - 1) // num_ranks)

    unit.module.register_forward_pre_hook(count)
