"""Conversion and verification of a checkpoint folder, at 1/20 of the published width."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.errors import CheckpointError, OutputError
from serve_app.model.checkpoint import BASE_FOLDER, DIT_CONFIG, DIT_STEM, LORA_FILE, VAE_FILE, Placement
from serve_app.model.config import ModelSizes, TextEncoderConfig, VAEConfig
from serve_app.model.convert import convert
from serve_app.model.full_checkpoint import FullCheckpoint
from serve_app.model.random_checkpoint import write_checkpoint
from serve_app.model.verify import verify

BFLOAT16 = Placement(torch.device("cpu"), torch.bfloat16)
TIMEOUT_S = 240
FULL = ModelSizes()
TWENTIETH = ModelSizes(
    name="twentieth",
    dit=replace(FULL.dit, dim=256, ffn_dim=692, num_heads=2, audio_dim=64, text_dim=208),
    vae=VAEConfig(dim=5, decoder_dim=5),
    text=TextEncoderConfig(vocab=12_800, dim=208, dim_attn=192, dim_ffn=512, num_heads=3, num_layers=24),
    speech={
        "hidden_size": 64,
        "num_hidden_layers": 24,
        "num_attention_heads": 4,
        "intermediate_size": 208,
        "conv_dim": [26] * 7,
    },
)


@pytest.fixture(scope="module", name="twentieth")
def _twentieth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("twentieth") / "ckpt"
    write_checkpoint(root, TWENTIETH)
    return root


def test_a_converted_folder_loads_the_same_weights(twentieth: Path, tmp_path: Path) -> None:
    target, told = tmp_path / "out" / "ckpt", list[str]()
    convert(twentieth, target, dtype="bfloat16", on_network=told.append)
    before, after = FullCheckpoint(twentieth).networks(), FullCheckpoint(target).networks()
    assert told == list(before)
    for role, find in before.items():
        expected = find().load(BFLOAT16).state_dict()
        found = after[role]().load(BFLOAT16).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected), role
    assert not (target / LORA_FILE).exists()
    assert not list(target.rglob("*.pth"))
    assert FullCheckpoint(target).tokenizer(16)("green")[-1] == 1


def test_a_lora_beside_merged_weights_is_refused(twentieth: Path, tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    convert(twentieth, target, dtype="bfloat16", on_network=lambda _: None)
    (target / LORA_FILE).parent.mkdir()
    (target / LORA_FILE).write_bytes((twentieth / LORA_FILE).read_bytes())
    with pytest.raises(CheckpointError, match="second time"):
        FullCheckpoint(target).dit().load(BFLOAT16)


def test_float32_keeps_every_digit_of_the_merge(twentieth: Path, tmp_path: Path) -> None:
    convert(twentieth, tmp_path / "ckpt", dtype="float32", on_network=lambda _: None)
    config = json.loads((tmp_path / "ckpt" / BASE_FOLDER / DIT_CONFIG).read_text())
    assert config["lora_merged"] is True
    float32 = Placement(torch.device("cpu"), torch.float32)
    expected = FullCheckpoint(twentieth).dit().load(float32).state_dict()
    found = load_file(tmp_path / "ckpt" / BASE_FOLDER / f"{DIT_STEM}.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


MEASURED = """
import re, sys, threading
from pathlib import Path
import torch
from serve_app.model.checkpoint import Placement
from serve_app.model.convert import convert
from serve_app.model.full_checkpoint import FullCheckpoint

def private_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", status)[1])

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, private_bytes())

source, target = map(Path, sys.argv[1:])
torch.ones(64, 64) @ torch.ones(64, 64)
peak = before = private_bytes()
done = threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
{work}
done.set()
watcher.join()
print(peak - before)
"""


def peak_private_bytes(work: str, source: Path, target: Path) -> int:
    """What `work` takes of memory at its height, in a process of its own; mapped files do not count."""
    found = subprocess.run(
        [sys.executable, "-c", MEASURED.replace("{work}", work), str(source), str(target)],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
        cwd=Path(__file__).parents[2],
    )
    return int(found.stdout)


def test_converting_needs_less_memory_than_one_shard(twentieth: Path, tmp_path: Path) -> None:
    shard = max(path.stat().st_size for path in (twentieth / BASE_FOLDER).glob(f"{DIT_STEM}-*.safetensors"))
    work = "convert(source, target, dtype='bfloat16', on_network=lambda role: None)"
    assert peak_private_bytes(work, twentieth, tmp_path / "ckpt") < 1.2 * shard


def test_loading_never_holds_the_model_twice(twentieth: Path, tmp_path: Path) -> None:
    dit = FullCheckpoint(twentieth).dit().module
    model = 4 * sum(parameter.numel() for parameter in dit.parameters())
    work = "loaded = FullCheckpoint(source).dit().load(Placement(torch.device('cpu'), torch.float32))"
    # Seen: 1.32 at this size, where libraries weigh as well; twice the model would be 2.
    assert model < peak_private_bytes(work, twentieth, tmp_path) < 1.5 * model


def test_an_existing_folder_is_never_touched(twentieth: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        convert(twentieth, tmp_path, dtype="bfloat16", on_network=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_source_that_does_not_fit_leaves_nothing(small_checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    _copy(small_checkpoint, source)
    vae = torch.load(source / BASE_FOLDER / VAE_FILE, weights_only=True)
    vae.pop("conv1.bias")
    torch.save(vae, source / BASE_FOLDER / VAE_FILE)
    with pytest.raises(CheckpointError, match=r"missing conv1\.bias"):
        convert(source, tmp_path / "target", dtype="bfloat16", on_network=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


def test_verify_counts_what_is_there(small_checkpoint: Path) -> None:
    reports = {report.role: report for report in verify(small_checkpoint)}
    assert set(reports) == {"dit", "text_encoder", "speech_encoder", "vae", "tokenizer"}
    assert all(not report.problem for report in reports.values())
    dit = FullCheckpoint(small_checkpoint).dit().module
    assert reports["dit"].num_parameters == sum(parameter.numel() for parameter in dit.parameters())


def test_verify_names_each_networks_problem_and_goes_on(small_checkpoint: Path, tmp_path: Path) -> None:
    _copy(small_checkpoint, tmp_path)
    base = tmp_path / BASE_FOLDER
    (base / VAE_FILE).unlink()
    shard = sorted(base.glob(f"{DIT_STEM}-*.safetensors"))[0]
    tensors = load_file(shard)
    tensors["blocks.0.modulation"][0, 0, 0] = float("nan")
    save_file(tensors, shard)
    problems = {report.role: report.problem for report in verify(tmp_path)}
    assert VAE_FILE in problems["vae"]
    assert "blocks.0.modulation" in problems["dit"]
    assert problems["text_encoder"] == problems["speech_encoder"] == problems["tokenizer"] == ""
