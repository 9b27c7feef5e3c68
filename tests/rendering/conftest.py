"""The inputs of a render, small and without faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.schemas.render import RenderSpec
from tests.media.conftest import WriteWav, ffprobe, write_wav

__all__ = ["ffprobe", "write_wav"]

PROMPT = "A person in a grey coat talks in an empty room."


@pytest.fixture(name="portrait")
def _portrait(tmp_path: Path) -> Path:
    """A grey square of 512 pixels."""
    path = tmp_path / "portrait.png"
    Image.new("RGB", (512, 512), "gray").save(path)
    return path


@pytest.fixture(name="voice")
def _voice(write_wav: WriteWav) -> Path:
    """A tone of 1.2 s = 30 frames at 16 kHz."""
    return write_wav(0.3 * np.sin(np.arange(19_200) / 20), 16_000)


@pytest.fixture
def spec(portrait: Path, voice: Path) -> RenderSpec:
    """A video of 30 frames of 64x64: two whole blocks and half a one."""
    return a_spec(portrait, voice)


def a_spec(portrait: Path, voice: Path, **changes: Any) -> RenderSpec:
    """Returns a spec of the smallest size with `changes`."""
    values = {"image": str(portrait), "audio": str(voice), "prompt": PROMPT, "size": "64*64", **changes}
    return RenderSpec.from_request(**values)
