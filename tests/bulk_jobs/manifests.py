"""Manifests for the tests: short voices, a portrait, and rows that are wrong in every way."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Row = dict[str, Any]
PROMPT = "A friendly person in a bright office talks to the camera."
NUM_VOICES = 8
BAD: dict[str, Callable[[Row], Row | str]] = {
    "INPUT_MISSING": lambda row: {**row, "image": "nowhere.png"},
    "INPUT_UNDECODABLE": lambda row: {**row, "audio": "noise.wav"},
    "AUDIO_TOO_SHORT": lambda row: {**row, "audio": "short.wav"},
    "PROMPT_INVALID": lambda row: {**row, "prompt": "   "},
    "ROW_INVALID": lambda row: {**row, "infer_frames": 32},
    "DUPLICATE_ID": lambda row: {**row, "custom_id": "ROW-000"},
    "NEVER_FITS": lambda row: {**row, "size": "1280*720", "fit": "area", "image": "large.png"},
}
"""By code: what makes a good row one that fails with it."""


def write_inputs(folder: Path) -> None:
    """Writes what the rows name."""
    Image.new("RGB", (512, 512), "gray").save(folder / "me.png")
    Image.new("RGB", (1280, 720), "gray").save(folder / "large.png")
    for number in range(NUM_VOICES):
        write_voice(folder / f"voice_{number}.wav", 0.4 + 0.3 * number)
    write_voice(folder / "short.wav", 0.05)
    (folder / "noise.wav").write_bytes(bytes(range(256)) * 20)


def write_voice(path: Path, seconds: float) -> None:
    samples = (0.3 * np.sin(np.arange(round(seconds * 16_000)) / 20) * 32_767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())


def good_row(number: int, **fields: Any) -> Row:
    voice = f"voice_{number % NUM_VOICES}.wav"
    row = {"custom_id": f"row-{number:03}", "image": "me.png", "audio": voice, "prompt": PROMPT, "size": "64*64"}
    return {**row, "seed": number, **fields}


def write_manifest(path: Path, rows: list[Row | str]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def mixed_rows(count: int, *, bad_share: float) -> tuple[list[Row | str], dict[str, int]]:
    """Returns rows of which that share is bad in each of the ways, spread over the manifest, and how many of each."""
    of_each = round(count * bad_share)
    step = count // (of_each * len(BAD))
    rows: list[Row | str] = [good_row(number) for number in range(count)]
    for index, (code, spoil) in enumerate(sorted(BAD.items()) * of_each):
        number = index * step + 1
        row = rows[number]
        assert isinstance(row, dict)
        rows[number] = spoil(row)
        assert code
    return rows, dict.fromkeys(BAD, of_each)
