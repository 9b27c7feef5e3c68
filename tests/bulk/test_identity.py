"""Keys: the same for what gives the same video, another one for anything that changes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk import identity
from serve_app.bulk.identity import body_key, checkpoint_digest, row_key
from serve_app.errors import CheckpointError
from serve_app.planning.network import TINY_CHECKPOINT
from serve_app.schemas.config import VideoEncoding
from serve_app.schemas.render import RenderSpec

BASE: dict[str, Any] = {"image": "/in/me.png", "audio": "/in/voice.wav", "prompt": "A woman talks."}
OTHER_SPECS: dict[str, Any] = {
    "prompt": "A man talks.",
    "size": "384*256",
    "fit": "exact",
    "num_clip": 3,
    "infer_frames": 36,
    "sample_steps": 3,
    "seed": 421,
    "enable_online_decode": False,
    "max_seconds": 2.5,
}


def key(*, image: str = "i" * 64, audio: str = "a" * 64, encoding: VideoEncoding | None = None, **spec: Any) -> str:
    return body_key(
        RenderSpec.from_request(**{**BASE, **spec}),
        image_sha256=image,
        audio_sha256=audio,
        encoding=encoding or VideoEncoding(),
    )


def test_the_same_content_at_another_place_has_the_same_key() -> None:
    assert key(image="x", audio="y") == body_key(
        RenderSpec.from_request(image="s3://bucket/other.png", audio="/elsewhere/b.mp3", prompt=BASE["prompt"]),
        image_sha256="x",
        audio_sha256="y",
        encoding=VideoEncoding(),
    )


def test_what_is_written_out_and_what_is_left_out_are_the_same() -> None:
    assert key() == key(size="704*384", seed=420, sample_steps=4, infer_frames=48)


@pytest.mark.parametrize("name", OTHER_SPECS)
def test_another_setting_has_another_key(name: str) -> None:
    assert key() != key(**{name: OTHER_SPECS[name]})


def test_every_setting_of_a_video_is_looked_at() -> None:
    assert set(RenderSpec.model_fields) - set(OTHER_SPECS) == {"image", "audio"}


@pytest.mark.parametrize("change", [{"image": "x"}, {"audio": "x"}, {"image": "a" * 64, "audio": "i" * 64}])
def test_other_inputs_have_another_key(change: dict[str, str]) -> None:
    assert key() != key(**change)


@pytest.mark.parametrize(
    "encoding",
    [
        VideoEncoding(crf=20),
        VideoEncoding(preset="slow"),
        VideoEncoding(threads=1),
        VideoEncoding(audio_bit_rate=96_000),
    ],
)
def test_another_encoding_has_another_key(encoding: VideoEncoding) -> None:
    assert key() != key(encoding=encoding)


def test_another_pipeline_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(identity, "PIPELINE_VERSION", identity.PIPELINE_VERSION + 1)
    assert key() != before


def test_another_model_has_another_key() -> None:
    assert row_key("body", model="a") == row_key("body", model="a")
    assert len({row_key("body", model="a"), row_key("body", model="b"), row_key("other", model="a")}) == 3


def test_prompts_of_any_script_have_keys() -> None:
    assert key(prompt="Eine Frau grüßt, 🎉") != key(prompt="Eine Frau grüßt, 🎈")


def write_checkpoint(root: Path) -> Path:
    for name, content in (
        ("Wan2.2-S2V-14B/config.json", b"{}"),
        ("Wan2.2-S2V-14B/model-1.safetensors", bytes(range(256)) * 400),
        ("Wan2.2-S2V-14B/vae.pth", b"weights"),
        ("LiveAvatar/liveavatar.safetensors", b"lora"),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "ckpt")


def test_a_copy_of_a_checkpoint_has_its_digest(root: Path, tmp_path: Path) -> None:
    assert checkpoint_digest(str(root)) == checkpoint_digest(str(write_checkpoint(tmp_path / "copy")))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte of the weights": lambda root: flip(root / "Wan2.2-S2V-14B" / "model-1.safetensors", 70_001),
    "a byte of the LoRA": lambda root: flip(root / "LiveAvatar" / "liveavatar.safetensors", 0),
    "a description": lambda root: (root / "Wan2.2-S2V-14B" / "config.json").write_text("{ }"),
    "another file": lambda root: (root / "more.safetensors").touch(),
    "one file less": lambda root: (root / "Wan2.2-S2V-14B" / "vae.pth").unlink(),
    "another name": lambda root: (root / "LiveAvatar").rename(root / "Other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_in_a_checkpoint_changes_its_digest(root: Path, change: str) -> None:
    before = checkpoint_digest(str(root))
    CHANGES[change](root)
    assert checkpoint_digest(str(root)) != before


def test_what_is_no_part_of_a_checkpoint_changes_nothing(root: Path) -> None:
    before = checkpoint_digest(str(root))
    (root / "README.md").write_text("about it")
    (root / ".cache").mkdir()
    os.utime(root / "LiveAvatar" / "liveavatar.safetensors", (1, 1))
    assert checkpoint_digest(str(root)) == before


def test_parts_of_a_checkpoint_may_stand_elsewhere(root: Path, tmp_path: Path) -> None:
    whole = checkpoint_digest(str(root))
    for part in ("Wan2.2-S2V-14B", "LiveAvatar"):
        (root / part).rename(tmp_path / part)
        (root / part).symlink_to(tmp_path / part)
    assert checkpoint_digest(str(root)) == whole
    flip(tmp_path / "LiveAvatar" / "liveavatar.safetensors", 0)
    assert checkpoint_digest(str(root)) != whole


def test_a_link_back_to_its_own_folder_is_followed_once(root: Path) -> None:
    before = checkpoint_digest(str(root))
    (root / "LiveAvatar" / "again").symlink_to(root)
    assert checkpoint_digest(str(root)) == before


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets files of more than 1000 bytes be large ones."""
    monkeypatch.setattr(identity, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(identity, "_SAMPLES", 16)
    monkeypatch.setattr(identity, "_SAMPLE_BYTES", 64)


@pytest.mark.usefixtures("sampled")
def test_of_a_large_file_head_end_and_samples_count(root: Path) -> None:
    weights = root / "Wan2.2-S2V-14B" / "model-1.safetensors"
    before, length = checkpoint_digest(str(root)), weights.stat().st_size
    for position in (0, length - 1, (length - 64) * 7 // 15):
        flip(weights, position)
        assert checkpoint_digest(str(root)) != before
        flip(weights, position)
    assert checkpoint_digest(str(root)) == before


@pytest.mark.usefixtures("sampled")
def test_of_a_large_file_the_length_counts(root: Path) -> None:
    weights = root / "Wan2.2-S2V-14B" / "model-1.safetensors"
    weights.write_bytes(bytes(5000))
    before = checkpoint_digest(str(root))
    weights.write_bytes(bytes(5001))
    assert checkpoint_digest(str(root)) != before


@pytest.mark.usefixtures("sampled")
def test_weights_that_were_trained_anew_have_another_digest(root: Path) -> None:
    weights = root / "Wan2.2-S2V-14B" / "model-1.safetensors"
    before = checkpoint_digest(str(root))
    weights.write_bytes(bytes(byte ^ 1 for byte in weights.read_bytes()))
    assert checkpoint_digest(str(root)) != before


def test_the_built_in_model_needs_no_folder() -> None:
    assert checkpoint_digest(TINY_CHECKPOINT) == TINY_CHECKPOINT


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f'{name}" holds no checkpoint'):
        checkpoint_digest(str(tmp_path / name))


def test_a_checkpoint_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path) -> list[bytes]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(identity, "_pieces", unreadable)
    with pytest.raises(CheckpointError, match=r"liveavatar\.safetensors.*Permission denied"):
        checkpoint_digest(str(root))
