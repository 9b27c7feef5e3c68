"""Ranks as plain processes on this machine, with gloo: AvatarProgram in every layout, without Ray.

Here the frames stay float32, for 8 bits would hide differences.
"""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_cluster.program import Seat, Unattended
from serve_app.engine import rank_program
from serve_app.engine.rank_program import AvatarProgram, Deadlines
from serve_app.planning.layout import ParallelLayout
from serve_app.task import RenderTask

TIMEOUT_S = 90
DEADLINES = Deadlines(meet_s=60, first_s=60, later_s=60)
# One process that has imported torch and the engine, from which ranks are forked: an import takes seconds.
CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.distributed.preload"])


@dataclass(frozen=True)
class Run:
    """What a gang answered to one task: frames of all blocks, float32 [T, H, W, 3] in [-1, 1]."""

    frames: NDArray[np.float32]
    sent_bytes: dict[str, int] = field(default_factory=dict)


class Ranks:
    """The processes of one gang; `run` gives the same task to all."""

    def __init__(self, checkpoint: Path, layout: str, deadlines: Deadlines) -> None:
        self.num_ranks = ParallelLayout.parse(layout).world_size
        options = {"checkpoint": str(checkpoint), "cache_dir": Path("unused"), "layout": layout, "deadlines": deadlines}
        self.answers: Any = CONTEXT.Queue()
        self._addresses: Any = CONTEXT.Queue()
        self.tasks: list[Any] = [CONTEXT.Queue() for _ in range(self.num_ranks)]
        self.processes: list[ForkServerProcess] = [
            CONTEXT.Process(
                target=_serve,
                args=(rank, self.num_ranks, options, self._addresses, self.tasks[rank], self.answers),
                daemon=True,
            )
            for rank in range(self.num_ranks)
        ]

    def start(self) -> list[Any]:
        """Returns the ranks' start reports."""
        for process in self.processes:
            process.start()
        return self._collect()

    def run(self, task: RenderTask, *, cancel_before: int | None = None) -> Run:
        answers = self._answers_to(task, cancel_before)
        blocks = [block for made, _ in answers for block in made]
        assert [block.index for block in blocks] == list(range(len(blocks)))
        sent: dict[str, int] = {}
        for _, by_purpose in answers:
            for purpose, count in by_purpose.items():
                sent[purpose] = sent.get(purpose, 0) + count
        return Run(np.concatenate([block.frames for block in blocks]), sent)

    def run_to_nothing(self, task: RenderTask) -> None:
        """Cancels before the first block, and sees that there is none."""
        assert [made for made, _ in self._answers_to(task, 0)] == [[]] * self.num_ranks

    def stop(self) -> None:
        for tasks in self.tasks:
            tasks.put(None)
        for process in self.processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()

    def _answers_to(self, task: RenderTask, cancel_before: int | None) -> list[Any]:
        for tasks in self.tasks:
            tasks.put((task, cancel_before))
        return self._collect()

    def _collect(self) -> list[Any]:
        answers: list[Any] = [None] * self.num_ranks
        for _ in range(self.num_ranks):
            try:
                rank, answer, failure = self.answers.get(timeout=TIMEOUT_S)
            except queue.Empty:
                raise TimeoutError(f"ranks answer nothing for {TIMEOUT_S} s") from None
            if failure:
                raise RuntimeError(f"rank {rank}: {failure}")
            answers[rank] = answer
        return answers


@contextmanager
def ranks(checkpoint: Path, layout: str, deadlines: Deadlines = DEADLINES) -> Iterator[Ranks]:
    """Starts a gang without Ray, and ends it."""
    gang = Ranks(checkpoint, layout, deadlines)
    try:
        gang.start()
        yield gang
    finally:
        gang.stop()


def _serve(rank: int, num_ranks: int, options: dict[str, Any], addresses: Any, tasks: Any, answers: Any) -> None:
    """What a rank's process does: start, then task after task until None."""
    torch.set_num_threads(1)
    rank_program.to_pixels = _exact_pixels
    try:
        program = AvatarProgram(**options)
        if rank == 0:
            address = program.open_rendezvous("127.0.0.1")
            for _ in range(num_ranks - 1):
                addresses.put(address)
        else:
            address = addresses.get(timeout=TIMEOUT_S)
        answers.put((rank, program.start(Seat(rank, num_ranks, address)), ""))
        while (order := tasks.get()) is not None:
            task, cancel_before = order
            made: list[Any] = []
            begun = _Begun(cancel_before)
            made.extend(program.run(task, begun))
            answers.put((rank, (made, program.sent_bytes()), ""))
        program.close()
    except BaseException:  # whatever it is, the test shall see it
        answers.put((rank, None, traceback.format_exc()))


def _exact_pixels(video_CTHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
    return video_CTHW.permute(1, 2, 3, 0).contiguous()


class _Begun(Unattended):
    """Cancels when the source asks for its turn with block `cancel_before`."""

    def __init__(self, cancel_before: int | None) -> None:
        super().__init__(lambda: self._is_cancelled)
        self._is_cancelled = False
        self._cancel_before = cancel_before

    def wait_for_turn(self, index: int, *, timeout_s: float) -> bool:  # noqa: ARG002
        self._is_cancelled = index == self._cancel_before
        return True
