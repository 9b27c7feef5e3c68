"""Files of named tensors: read one tensor at a time, written one tensor at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from serve_app.errors import CheckpointError

NamedTensors = Iterable[tuple[str, Tensor]]

_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of `path`, of its shards when an index lies beside it, or of its `.safetensors` twin.

    Raises CheckpointError for a missing or damaged file.
    """
    twin = path.with_suffix(".safetensors")
    index = Path(f"{twin}.index.json")
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise damaged(index)
        for shard in sorted(set(weight_map.values())):
            yield from _read_safetensors(path.parent / str(shard))
    elif twin.is_file():
        yield from _read_safetensors(twin)
    else:
        yield from _read_pth(path)


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """Opens a safetensors file; raises CheckpointError when it is missing or damaged."""
    require(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise damaged(path) from error


def write_safetensors(path: Path, shapes: Mapping[str, torch.Size], tensors: NamedTensors, dtype: torch.dtype) -> None:
    """Writes tensors of known shapes as they come, cast to `dtype`, holding one of them at a time.

    The library's own writer wants all tensors in memory at once.
    """
    header, offsets = _layout(shapes, dtype)
    with path.open("xb") as file:
        file.write(header)
        for name, tensor in tensors:
            file.seek(len(header) + offsets[name])
            file.write(tensor.to(dtype).contiguous().view(torch.uint8).numpy().data)
        file.truncate(len(header) + sum(shape.numel() for shape in shapes.values()) * dtype.itemsize)


def _layout(shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> tuple[bytes, dict[str, int]]:
    """Returns the header of a safetensors file and where each tensor begins behind it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for name, shape in shapes.items():
        offsets[name], end = end, end + shape.numel() * dtype.itemsize
        span = [offsets[name], end]
        entries[name] = {"dtype": _SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": span}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offsets


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object of a JSON file; raises CheckpointError when it is missing or no object."""
    require(path)
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise damaged(path) from error
    if not isinstance(values, dict):
        raise damaged(path)
    return values


def require(path: Path) -> None:
    """Raises CheckpointError unless `path` is a file."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", remedy="download the checkpoint folder again")


def damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or not what its name says", remedy="download it again")


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118  (the file is no mapping)
            yield name, file.get_tensor(name)


def _read_pth(path: Path) -> NamedTensors:
    """Maps the file into memory; only tensors are unpickled, never code."""
    require(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise damaged(path) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise damaged(path)
    return tensors.items()
