"""Rows, orders and inputs for tests, each with what a test does not care about filled in."""

from __future__ import annotations

import hashlib
import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from serve_app.bulk.lanes.messages import RowOrder
from serve_app.bulk.outcomes import Code, RowError
from serve_app.bulk.row import Entry
from serve_app.bulk.table import PlannedRow

PROMPT = "A person in a grey coat talks in an empty room."


def planned(custom_id: str = "row", *, number: int = 1, predicted_s: float = 1.0, **changes: Any) -> PlannedRow:
    """Returns a row of a table; `archive_name` is of its origin."""
    origin = {
        "original": {"custom_id": custom_id},
        "base": "/in",
        "sha256": {"image": "of the image", "audio": "of the audio"},
        "metadata": {},
        "archive_name": changes.pop("archive_name", None),
        "warnings": [],
    }
    values = {"spec": {"seed": number}, "origin": origin, "body_key": f"body of {custom_id}", "num_frames": 25}
    return PlannedRow(number=number, custom_id=custom_id, predicted_s=predicted_s, **{**values, **changes})


def error(code: Code, message: str = "it failed") -> RowError:
    return RowError(code, message, "render", attempt=1)


def write_portrait(path: Path, *, width: int = 512, height: int = 512, grey: int = 128) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (grey, grey, grey)).save(path)
    return path


def write_voice(path: Path, *, seconds: float = 1.2, pitch: float = 20.0) -> Path:
    """Writes a tone at 16 kHz; 1.2 s are 30 frames."""
    samples = 0.3 * np.sin(np.arange(round(seconds * 16_000)) / pitch) * 32_767
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def entry(base: Path | str, custom_id: str = "row", *, number: int = 1, **fields: Any) -> Entry:
    """Returns a row as a manifest in the folder `base` has it; fields that are None are left out."""
    written = {"image": "me.png", "audio": "voice.wav", "prompt": PROMPT, "size": "64*64", **fields}
    given = {name: value for name, value in written.items() if value is not None}
    return Entry(number, custom_id, given, {"custom_id": custom_id, **given}, str(base))


def order(folder: Path, custom_id: str = "row", **changes: Any) -> RowOrder:
    """Returns an order for a video of 30 frames of 64x64, whose inputs are made in `folder`."""
    inputs = {"image": folder / "me.png", "audio": folder / "voice.wav"}
    if not inputs["audio"].exists():
        write_portrait(inputs["image"])
        write_voice(inputs["audio"])
    spec = {**{name: str(path) for name, path in inputs.items()}, "prompt": PROMPT, "size": "64*64"}
    values = {
        "seq": 1,
        "attempt": 1,
        "spec": {**spec, **changes.pop("spec", {})},
        "sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in inputs.items()},
        "row_key": "k1",
        "limit_s": 60.0,
    }
    return RowOrder(custom_id=custom_id, **{**values, **changes})
