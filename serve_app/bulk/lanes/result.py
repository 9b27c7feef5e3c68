"""The result of a row: what result.json says of a video, whichever kind of lane made it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from serve_app.bulk.lanes.messages import RowOrder
from serve_app.bulk.row import Document


@dataclass(frozen=True)
class MadeVideo:
    """A video as it came out: WIDTHxHEIGHT, frames, seconds of video; seconds that it took, and of all GPUs."""

    size: str
    num_frames: int
    seconds: float
    render_s: float
    gpu_s: float


@dataclass(frozen=True)
class Published:
    """A video in its place: its address, and what tells whether it is whole."""

    uri: str
    sha256: str
    num_bytes: int


def result_of(order: RowOrder, made: MadeVideo, published: Published, *, lane: str, run_id: str) -> Document:
    """Returns what makes the row done."""
    return {
        "custom_id": order.custom_id,
        "row_key": order.row_key,
        **vars(published),
        **vars(made),
        "attempts": order.attempt,
        "group": lane,
        "run_id": run_id,
        "finished_at": round(time.time(), 3),
        "metadata": order.metadata,
        "warnings": list(order.warnings),
    }
