"""Checkpoint folders: everything loads, and whatever is wrong is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.errors import CheckpointError
from serve_app.model.checkpoint import (
    BASE_FOLDER,
    DIT_CONFIG,
    DIT_STEM,
    LORA_FILE,
    VAE_FILE,
    Placement,
)
from serve_app.model.full_checkpoint import TEXT_ENCODER_FILE, FullCheckpoint
from serve_app.model.lora import SCALE
from serve_app.model.tensor_files import read_tensors

CPU = Placement(torch.device("cpu"), torch.float32)
FIRST_SHARD = f"{DIT_STEM}-00001-of-00002.safetensors"


@pytest.fixture(name="folder")
def _folder(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "ckpt"))


def test_every_network_loads_in_the_wanted_dtype(small_checkpoint: Path) -> None:
    bfloat16 = Placement(torch.device("cpu"), torch.bfloat16)
    for find in FullCheckpoint(small_checkpoint).networks().values():
        dtypes = {parameter.dtype for parameter in find().load(bfloat16).parameters()}
        assert dtypes == {torch.bfloat16}


def test_the_lora_is_merged_into_the_weights(folder: Path) -> None:
    merged = FullCheckpoint(folder).dit().load(CPU).state_dict()
    adapters = load_file(folder / LORA_FILE)
    base = dict(read_tensors(folder / BASE_FOLDER / f"{DIT_STEM}.safetensors"))
    name = "blocks.1.self_attn.q"
    a, b = (adapters[f"base_model.model.{name}.lora_{half}.default.weight"].float() for half in "AB")
    torch.testing.assert_close(merged[f"{name}.weight"], base[f"{name}.weight"].float() + SCALE * (b @ a))
    assert torch.equal(merged[f"{name}.bias"], base[f"{name}.bias"].float())


def test_a_missing_lora_is_an_error_not_a_broken_picture(folder: Path) -> None:
    (folder / LORA_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"liveavatar\.safetensors is missing"):
        FullCheckpoint(folder).dit().load(CPU)


def test_a_single_file_without_an_index_loads_too(folder: Path) -> None:
    base = folder / BASE_FOLDER
    expected = FullCheckpoint(folder).dit().load(CPU).state_dict()
    tensors = {}
    for shard in sorted(base.glob(f"{DIT_STEM}-*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (base / f"{DIT_STEM}.safetensors.index.json").unlink()
    save_file(tensors, base / f"{DIT_STEM}.safetensors")
    found = FullCheckpoint(folder).dit().load(CPU).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_names_every_missing_extra_and_misshapen_tensor(folder: Path) -> None:
    shard = folder / BASE_FOLDER / FIRST_SHARD
    tensors = load_file(shard)
    missing, misshapen = sorted(tensors)[:2]
    del tensors[missing]
    tensors[misshapen] = torch.zeros(3, 5)
    tensors["blocks.99.extra"] = torch.zeros(1)
    save_file(tensors, shard)
    with pytest.raises(CheckpointError) as caught:
        FullCheckpoint(folder).dit().load(CPU)
    message = str(caught.value)
    assert f"missing {missing}" in message
    assert f"{misshapen} has shape [3, 5]" in message
    assert "extra blocks.99.extra" in message


@pytest.mark.parametrize(
    ("file", "role"),
    [
        (FIRST_SHARD, "dit"),
        (VAE_FILE, "vae"),
        (TEXT_ENCODER_FILE, "text_encoder"),
        ("wav2vec2-large-xlsr-53-english/model.safetensors", "speech_encoder"),
    ],
)
@pytest.mark.parametrize("damage", ["removed", "cut", "replaced"])
def test_a_lost_or_damaged_file_is_named(folder: Path, file: str, role: str, damage: str) -> None:
    path = folder / BASE_FOLDER / file
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000] if damage == "cut" else b"<html>404 not found</html>")
    with pytest.raises(CheckpointError, match=path.name):
        FullCheckpoint(folder).networks()[role]().load(CPU)


def test_a_folder_that_is_no_checkpoint_says_what_one_holds(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=BASE_FOLDER):
        FullCheckpoint(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("enable_motioner", True), ("patch_size", [1, 4, 4])])
def test_another_kind_of_transformer_is_refused(folder: Path, name: str, value: object) -> None:
    path = folder / BASE_FOLDER / DIT_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=name):
        FullCheckpoint(folder).dit().load(CPU)


def test_a_pickle_that_runs_code_is_refused(folder: Path) -> None:
    """weights_only: a `.pth` file is data, whatever it says."""
    path = folder / BASE_FOLDER / VAE_FILE
    torch.save({"conv1.weight": Path}, path)
    with pytest.raises(CheckpointError, match=VAE_FILE):
        FullCheckpoint(folder).vae().load(CPU)
