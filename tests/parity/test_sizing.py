"""Output sizes, clips and the fitting of the portrait against the reference."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from serve_app.errors import InvalidRequestError
from serve_app.media.image import fit_portrait
from serve_app.model.reference import MOTION_LATENTS
from serve_app.planning.geometry import (
    FRAMES_PER_BLOCK,
    LATENT_FRAMES_PER_BLOCK,
    STARTUP_FRAMES,
    Size,
    Timeline,
    area_size,
    check_infer_frames,
)
from tests.parity.golden import GOLDEN_DIR, cases, largest_error, load

PIXEL_TOLERANCE = 1e-6

SIZINGS = sorted(path for path in (GOLDEN_DIR / "sizing").glob("*.json") if "rows" in json.loads(path.read_text()))
IMAGES = [(path, case["case"]) for path in cases("sizing") for case in load(path).spec["cases"]]


def test_there_are_sizing_tables() -> None:
    assert SIZINGS


@pytest.mark.parametrize("path", SIZINGS, ids=lambda path: path.stem)
def test_sizes_tokens_and_caches_match_the_reference(path: Any) -> None:
    rows = json.loads(path.read_text())["rows"]
    for row in rows:
        size = area_size(Size(width=row["image_w"], height=row["image_h"]), row["max_area"])
        found = {
            "out_h": size.height,
            "out_w": size.width,
            "latent_h": size.latent_height,
            "latent_w": size.latent_width,
            "tokens_per_frame": size.tokens_per_frame,
            "tokens_per_block": LATENT_FRAMES_PER_BLOCK * size.tokens_per_frame,
            "cond_tokens": size.cond_tokens,
        }
        for key in row:
            if key.startswith("kv_cache_tokens_"):
                window = Timeline(num_frames=1, infer_frames=int(key.rpartition("_")[2])).window_latent_frames
                found[key] = window * size.tokens_per_frame
        assert found == {name: row[name] for name in found}, row


@pytest.mark.parametrize("path", SIZINGS, ids=lambda path: path.stem)
def test_clips_match_the_reference(path: Any) -> None:
    for row in json.loads(path.read_text())["clips"]:
        infer_frames = row["infer_frames"]
        if row["unused_latent_frames"]:
            with pytest.raises(InvalidRequestError, match=str(infer_frames)):
                check_infer_frames(infer_frames)
            continue
        check_infer_frames(infer_frames)
        timeline = Timeline(num_frames=2 * infer_frames, infer_frames=infer_frames)
        assert timeline.blocks_per_clip == row["blocks_per_clip"]
        assert timeline.window_latent_frames == row["lat_target_frames"]
        assert timeline.blocks_per_clip * FRAMES_PER_BLOCK == row["pixels_later_clip"]
        assert timeline.blocks_per_clip * FRAMES_PER_BLOCK - STARTUP_FRAMES == row["pixels_first_clip"]
        assert row["lat_motion_frames"] == MOTION_LATENTS


@pytest.mark.parametrize(("path", "name"), IMAGES, ids=[f"{path.stem}-{name}" for path, name in IMAGES])
def test_the_fitted_portrait_matches_the_reference(path: Any, name: str, record_property: Any) -> None:
    golden = load(path)
    case = next(case for case in golden.spec["cases"] if case["case"] == name)
    image = golden.tensors[f"{name}.image_u8"].numpy()
    fitted = fit_portrait(image, size=Size(width=case["target_w"], height=case["target_h"]), fit="area")
    pixels = torch.from_numpy(fitted).permute(2, 0, 1).float() / 127.5 - 1
    error = largest_error(pixels, golden.tensors[f"{name}.pixels"])
    record_property("pixels", error)
    assert error <= PIXEL_TOLERANCE
