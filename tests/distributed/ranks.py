"""Ranks as plain processes on this machine, with gloo: AvatarProgram in every layout, without Ray.

Here the frames stay float32, for 8 bits would hide differences.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_cluster.program import Seat, Unattended
from serve_app.engine import rank_program
from serve_app.engine.rank_program import AvatarProgram
from serve_app.planning.layout import ParallelLayout
from serve_app.task import RenderTask

TIMEOUT_S = 60
DEADLINES = {"meet_s": 60.0, "first_s": 60.0, "later_s": 60.0}
# One process that has imported torch and the engine, from which ranks are forked: an import takes seconds.
CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.distributed.preload"])


@dataclass(frozen=True)
class Run:
    """What a gang answered to one task: frames of all blocks, float32 [T, H, W, 3] in [-1, 1]."""

    frames: NDArray[np.float32]
    sent_bytes: dict[str, int] = field(default_factory=dict)


class Ranks:
    """The processes of one gang, each at the end of a pipe of its own; `run` gives the same task to all."""

    def __init__(self, checkpoint: Path, layout: str, deadlines: Mapping[str, float] = DEADLINES) -> None:
        self.num_ranks = ParallelLayout.parse(layout).world_size
        options = {"checkpoint": str(checkpoint), "cache_dir": Path("unused"), "layout": layout, **deadlines}
        self._pipes: list[Connection] = []
        self.processes: list[ForkServerProcess] = []
        for rank in range(self.num_ranks):
            ours, theirs = CONTEXT.Pipe()
            self._pipes.append(ours)
            self.processes.append(
                CONTEXT.Process(target=_serve, args=(rank, self.num_ranks, options, theirs), daemon=True)
            )
            self.processes[-1].start()
            theirs.close()  # so that the end of the process is the end of the pipe

    def start(self) -> list[Any]:
        """Lets the ranks meet; returns their start reports."""
        address = self._answer(0)
        for pipe in self._pipes[1:]:
            pipe.send(address)
        return [self._answer(rank) for rank in range(self.num_ranks)]

    def run(self, task: RenderTask, *, cancel_before: int | None = None, pauses: int = 0) -> Run:
        """The source waits `pauses` times in vain for its turn with block 2."""
        answers = self._answers_to(task, cancel_before, pauses)
        blocks = [block for made, _ in answers for block in made]
        assert [block.index for block in blocks] == list(range(len(blocks)))
        sent: Counter[str] = Counter()
        for _, by_purpose in answers:
            sent.update(by_purpose)
        return Run(np.concatenate([block.frames for block in blocks]), dict(sent))

    def run_to_nothing(self, task: RenderTask) -> None:
        """Cancels before the first block, and sees that there is none."""
        assert [made for made, _ in self._answers_to(task, 0, 0)] == [[]] * self.num_ranks

    def signal(self, rank: int, number: int) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def failures(self, task: RenderTask, *, of: list[int]) -> dict[int, str]:
        """Gives the task to these ranks and returns what they raise."""
        for rank in of:
            self._pipes[rank].send((task, None, 0))
        return {rank: self._received(rank)[1] for rank in of}

    def stop(self) -> None:
        for process, pipe in zip(self.processes, self._pipes, strict=True):
            with suppress(OSError):
                pipe.send(None)
            process.join(timeout=1)
            process.kill()
            process.join()
            pipe.close()

    def _answers_to(self, task: RenderTask, cancel_before: int | None, pauses: int) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((task, cancel_before, pauses))
        return [self._answer(rank) for rank in range(self.num_ranks)]

    def _answer(self, rank: int) -> Any:
        answer, failure = self._received(rank)
        if failure:
            raise RuntimeError(f"rank {rank}: {failure}")
        return answer

    def _received(self, rank: int) -> tuple[Any, str]:
        """Returns what a rank answers, and what it raised."""
        pipe = self._pipes[rank]
        if not pipe.poll(TIMEOUT_S):
            raise TimeoutError(f"rank {rank} answers nothing for {TIMEOUT_S} s")
        received: tuple[Any, str] = pipe.recv()
        return received


@contextmanager
def ranks(checkpoint: Path, layout: str, deadlines: Mapping[str, float] = DEADLINES) -> Iterator[Ranks]:
    """Starts a gang without Ray, and ends it."""
    gang = Ranks(checkpoint, layout, deadlines)
    try:
        gang.start()
        yield gang
    finally:
        gang.stop()


def _serve(rank: int, num_ranks: int, options: dict[str, Any], pipe: Connection) -> None:
    """What a rank's process does: start, then task after task until None."""
    torch.set_num_threads(1)
    rank_program.to_pixels = _exact_pixels
    try:
        program = AvatarProgram(**options)
        address = program.open_rendezvous("127.0.0.1") if rank == 0 else pipe.recv()
        if rank == 0:
            pipe.send((address, ""))
        pipe.send((program.start(Seat(rank, num_ranks, address)), ""))
        while (order := pipe.recv()) is not None:
            task, *orders = order
            pipe.send(((list(program.run(task, _Begun(*orders))), program.sent_bytes()), ""))
        program.close()
    except BaseException:  # whatever it is, the test shall see it
        pipe.send((None, traceback.format_exc()))


def _exact_pixels(video_CTHW: torch.Tensor) -> torch.Tensor:  # noqa: N803
    return video_CTHW.permute(1, 2, 3, 0).contiguous()


class _Begun(Unattended):
    """Cancels when the source asks for its turn with block `cancel_before`; lets it wait before block 2."""

    def __init__(self, cancel_before: int | None, pauses: int) -> None:
        super().__init__(lambda: self._is_cancelled)
        self._is_cancelled = False
        self._cancel_before = cancel_before
        self._pauses = pauses

    def wait_for_turn(self, index: int, *, timeout_s: float) -> bool:
        self._is_cancelled = index == self._cancel_before
        if index == 2 and self._pauses:
            self._pauses -= 1
            time.sleep(timeout_s)  # as a gang does while nothing is taken
            return False
        return True
