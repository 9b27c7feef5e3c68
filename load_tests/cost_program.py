"""A RankProgram driven by the cost table: blocks of grey frames that take as long as planning predicts.

Some prompts make it misbehave: "act:die", "act:nan", "act:hang", "act:raise", always, or with "once:FILE" behind it
only as long as FILE is not there.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ray_cluster.program import RunControl, Seat, StartReport
from serve_app.errors import NotFiniteError
from serve_app.planning.calibration import load_calibration
from serve_app.planning.cost import predict
from serve_app.planning.geometry import STARTUP_FRAMES
from serve_app.planning.hardware import GpuKind
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.network import TINY
from serve_app.planning.workload import Workload
from serve_app.task import FrameBlock, RenderTask

CPU = GpuKind("cpu", 2**30, 0.1, 1e9)
"""What the fleet takes a CPU for."""


class CostProgram:
    """One rank. Its options are those of the real program."""

    def __init__(self, **_: object) -> None:
        self._calibration = load_calibration()

    def open_rendezvous(self, host: str) -> str:
        return host

    def start(self, seat: Seat) -> StartReport:
        self._is_output = seat.rank == seat.num_ranks - 1
        return StartReport(role=f"rank {seat.rank}", is_output=self._is_output, facts={"device": "none"})

    def run(self, task: RenderTask, control: RunControl) -> Iterator[FrameBlock]:
        if not self._is_output:
            return
        work = Workload(
            task.size,
            task.timeline.infer_frames,
            task.sample_steps,
            task.timeline.num_frames,
            len(task.speech) / 16_000,
        )
        told = predict(work, ParallelLayout(), CPU, dtype="float32", calibration=self._calibration, dims=TINY)
        pause(told.conditioning_seconds)
        for index in range(task.timeline.num_blocks):
            act(task.prompt)
            pause(told.period_seconds)
            control.note(f"block {index}")
            if control.is_cancelled():
                return
            yield grey_block(task, index, told.period_seconds)

    def close(self) -> None:
        """Nothing is open."""


def grey_block(task: RenderTask, index: int, seconds: float) -> FrameBlock:
    count = 12 - (STARTUP_FRAMES if index == 0 else 0)
    frames = np.full((count, task.size.height, task.size.width, 3), 40 + index % 100, dtype=np.uint8)
    return FrameBlock(index=index, frames=frames, seconds=seconds)


def pause(seconds: float) -> None:
    """Takes the time that a GPU would."""
    threading.Event().wait(seconds)


def act(prompt: str) -> None:
    """Misbehaves if the prompt says so."""
    words = prompt.split()
    if not words[0].startswith("act:"):
        return
    for word in words:
        if word.startswith("once:"):
            marker = Path(word.removeprefix("once:"))
            if marker.exists():
                return
            marker.touch()
    match words[0].removeprefix("act:"):
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "nan":
            raise NotFiniteError("frames with NaN", remedy="try again")
        case "hang":
            threading.Event().wait(600)
        case "raise":
            raise RuntimeError("a bug of the program")
        case other:
            raise AssertionError(other)
