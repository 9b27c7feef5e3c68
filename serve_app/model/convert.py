"""Converts a checkpoint folder: LoRA merged, weights cast, one safetensors file per network."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from serve_app.errors import OutputError
from serve_app.model.checkpoint import BASE_FOLDER, DIT_CONFIG, LORA_MERGED, Network, fitting
from serve_app.model.full_checkpoint import FullCheckpoint
from serve_app.model.tensor_files import read_json, write_safetensors

_CAST_ROLES = ("dit", "text_encoder")
_DESCRIPTIONS = (".json", ".txt", ".model")
_INDEX = ".index.json"

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def convert(source: Path, target: Path, *, dtype: str, on_network: Callable[[str], None]) -> None:
    """Writes `source` as a new checkpoint folder `target`; needs memory for one tensor at a time.

    The transformer and the text encoder are cast to `dtype` ("bfloat16" or "float32"); VAE and speech encoder,
    small and sensitive, stay float32. `on_network` is told each role before it is written. Raises CheckpointError
    for a source that does not fit and OutputError when `target` exists or cannot be written.
    """
    checkpoint = FullCheckpoint(source)
    if target.exists():
        raise OutputError(f'"{target}" exists', remedy="name a new folder", param="out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _not_written(target, error) from error
    try:
        _write_all(checkpoint, unfinished / BASE_FOLDER, DTYPES[dtype], on_network)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_all(checkpoint: FullCheckpoint, base: Path, dtype: torch.dtype, on_network: Callable[[str], None]) -> None:
    _copy_descriptions(checkpoint, base)
    for role, find in checkpoint.networks().items():
        on_network(role)
        network = find()
        path = (base / network.file.relative_to(checkpoint.base)).with_suffix(".safetensors")
        _write_network(network, path, dtype if role in _CAST_ROLES else torch.float32)


def _write_network(network: Network[Any], path: Path, dtype: torch.dtype) -> None:
    parameters = network.module.named_parameters()
    shapes = {network.published_name(name): parameter.shape for name, parameter in parameters}
    fitted = fitting(network.module, network.tensors, source=str(network.file))
    write_safetensors(path, shapes, ((network.published_name(name), tensor) for name, tensor in fitted), dtype)


def _copy_descriptions(checkpoint: FullCheckpoint, base: Path) -> None:
    """Copies configurations and the tokenizer, not weights; notes that the LoRA is merged."""
    for path in sorted(checkpoint.base.rglob("*")):
        if path.suffix in _DESCRIPTIONS and not path.name.endswith(_INDEX) and path.is_file():
            copy = base / path.relative_to(checkpoint.base)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    config = read_json(base / DIT_CONFIG) | {LORA_MERGED: True}
    (base / DIT_CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def _not_written(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f'"{target}" cannot be written: {error.strerror or error}',
        remedy="choose a folder that is writable and has space for all weights",
        param="out",
    )
