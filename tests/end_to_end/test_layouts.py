"""`live-avatar render --layout`: a private Ray, ranks of their own, the same video."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.end_to_end.conftest import RunCli
from tests.media.conftest import WriteWav

RENDER = ["render", "--image=portrait.png", "--audio=voice.wav", "--prompt=A person talks.", "--size=64*64"]


def test_a_gang_writes_the_bytes_of_one_process(live_avatar: RunCli, inputs: Path, write_wav: WriteWav) -> None:
    write_wav(0.3 * np.sin(np.arange(48_000) / 20), 16_000)
    one = live_avatar(*RENDER, "--out=one.mp4", cwd=inputs)
    assert one.returncode == 0, one.stderr
    many = live_avatar(*RENDER, "--layout=stages=2,vae=1", "--gpu-log=gpus.csv", "--out=many.mp4", cwd=inputs)
    assert many.returncode == 0, many.stderr
    assert "3 ranks (stages=2,vae=1) on " in many.stderr
    assert (inputs / "many.mp4").read_bytes() == (inputs / "one.mp4").read_bytes()
    assert "gpus.csv" in many.stderr or (inputs / "gpus.csv").is_file()


def test_the_users_flags_mean_the_same_layouts(live_avatar: RunCli, inputs: Path) -> None:
    flags = ["--num_gpus_dit=2", "--ulysses_size=2", "--enable_vae_parallel", "true", "--offload_model=False"]
    done = live_avatar(*RENDER, *flags, "--out=video.mp4", cwd=inputs)
    assert done.returncode == 0, done.stderr
    assert "3 ranks (ulysses=2,vae=1) on " in done.stderr


def test_heads_that_the_checkpoint_does_not_have_are_the_users_error(live_avatar: RunCli, inputs: Path) -> None:
    before = set(inputs.rglob("*"))
    done = live_avatar(*RENDER, "--layout=ulysses=5", "--out=video.mp4", cwd=inputs)
    assert done.returncode == 2, done.stderr
    assert "ulysses=5 does not divide the model's 4 attention heads; use ulysses=1, 2 or 4" in done.stderr
    assert set(inputs.rglob("*")) == before
