"""Cards: how much memory CUDA reports, how fast they multiply, what they are called on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from serve_app.errors import InvalidRequestError, did_you_mean, shown

GIB = 2**30
MAX_GPUS = 1024


@dataclass(frozen=True)
class GpuKind:
    """One kind of card.

    `total_bytes` is what CUDA reports as total memory; `tflops` the dense bfloat16 peak with float32 sums, as the
    maker publishes it; `link_bytes_per_second` what a card sends to its neighbours, over NVLink or PCIe.
    """

    name: str
    total_bytes: int
    tflops: float
    link_bytes_per_second: float

    @property
    def total_gib(self) -> float:
        return self.total_bytes / GIB


@dataclass(frozen=True)
class Gpus:
    """So many cards of one kind."""

    count: int
    kind: GpuKind

    def __str__(self) -> str:
        return f"{self.count}x{self.kind.name}"


_NVLINK_A100, _NVLINK_H100, _NVLINK_H800 = 3.0e11, 4.5e11, 2.0e11
_PCIE4, _PCIE5 = 2.0e10, 4.0e10


def _kind(name: str, total_gib: float, tflops: float, link: float) -> GpuKind:
    return GpuKind(name, round(total_gib * GIB), tflops, link)


_NAMED = (
    _kind("RTX3090", 23.64, 71, _PCIE4),
    _kind("RTX4090", 23.64, 165, _PCIE4),
    _kind("RTX4090-ECC", 22.15, 165, _PCIE4),
    _kind("RTX5090", 31.36, 209, _PCIE5),
    _kind("RTXA6000", 47.54, 155, _PCIE4),
    _kind("L40S", 44.39, 362, _PCIE4),
    _kind("A100", 79.25, 312, _NVLINK_A100),
    _kind("H100", 79.65, 989, _NVLINK_H100),
    _kind("H800", 79.65, 989, _NVLINK_H800),
    _kind("H200", 139.72, 989, _NVLINK_H100),
)
_BY_MEMORY = (
    _kind("24", 23.64, 165, _PCIE4),
    _kind("48", 47.5, 155, _PCIE4),
    _kind("80", 79.25, 312, _NVLINK_A100),
)
KINDS: Mapping[str, GpuKind] = MappingProxyType({kind.name: kind for kind in (*_NAMED, *_BY_MEMORY)})
"""By name; a bare number stands for the usual card of so many gigabytes: 24 a 4090, 48 an A6000, 80 an A100."""

_GENERIC_TFLOPS = 100.0


def parse_gpus(text: str) -> Gpus:
    """Reads "4xRTX4090", "1xH100", "4x24" or "H100"; raises InvalidRequestError that names what is known."""
    match = re.fullmatch(r"\s*(?:(\d{1,6})\s*[xX*])?\s*([A-Za-z0-9-]+)\s*", text)
    if match is None:
        raise _invalid(f"gpus {shown(text)} is not COUNTxKIND", "write for example 4x24, 4xRTX4090 or auto")
    count, name = int(match[1] or 1), match[2].upper()
    if name not in KINDS:
        raise _invalid(
            f"gpus {shown(text)}: {shown(match[2])} is no known card{did_you_mean(name, KINDS)}",
            f"use one of {', '.join(KINDS)}, or auto for the cards of this machine",
        )
    if not 1 <= count <= MAX_GPUS:
        raise _invalid(
            f"gpus {shown(text)}: {count} is not a number of cards from 1 to {MAX_GPUS}", "correct the count"
        )
    return Gpus(count, KINDS[name])


def measured_kind(name: str, total_bytes: int) -> GpuKind:
    """Returns the kind of a card that was seen: its measured memory, and the speed of the known card of its name."""
    spelled = _spelled(name)
    known = next((kind for kind in _NAMED if kind.name in spelled), None)
    if known is None:
        return GpuKind(name, total_bytes, _GENERIC_TFLOPS, _PCIE4)
    return GpuKind(name, total_bytes, known.tflops, known.link_bytes_per_second)


def is_called(kind: GpuKind, name: str) -> bool:
    """Returns whether a driver's name is of a card of this kind: a "NVIDIA GeForce RTX 4090" is an RTX4090.

    Of no card of a memory class: what was measured on an H100 of 80 GB does not hold for every card of 80 GB.
    """
    return kind not in _BY_MEMORY and _spelled(kind.name) in _spelled(name)


def _spelled(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", name.upper())


def _invalid(message: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(message, remedy=remedy, param="gpus")
