"""AvatarProgram: frames out of tasks, the same every time, and nothing shared between videos."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_cluster.program import Seat, Unattended
from serve_app.engine import networks
from serve_app.engine.decoding import to_pixels
from serve_app.engine.rank_program import AvatarProgram
from serve_app.errors import NotFiniteError
from serve_app.model.checkpoint import Placement
from serve_app.planning.geometry import Timeline
from serve_app.task import FrameBlock, RenderTask

TIMEOUT_S = 120
MEAN_BFLOAT16_DIFFERENCE = 4.0


def a_task(
    *, frames: int = 30, seed: int = 1, portrait: int = 0, infer_frames: int = 12, replace_reference: bool = True
) -> RenderTask:
    """64x64, one clip per block, so that every kind of state changes within few blocks."""
    random = np.random.default_rng(portrait)
    return RenderTask(
        prompt=f"person number {portrait}",
        image=random.integers(0, 256, (64, 64, 3), dtype=np.uint8),
        speech=random.uniform(-0.5, 0.5, 20_000).astype(np.float32),
        timeline=Timeline(frames, infer_frames),
        sample_steps=3,
        seed=seed,
        replace_reference=replace_reference,
    )


def digest(blocks: list[FrameBlock]) -> str:
    return hashlib.sha256(b"".join(block.frames.tobytes() for block in blocks)).hexdigest()


@pytest.fixture(scope="module", name="program")
def _program(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> AvatarProgram:
    return started(small_checkpoint, cache_dir=tmp_path_factory.mktemp("unused"))


def started(checkpoint: Path, *, cache_dir: Path) -> AvatarProgram:
    program = AvatarProgram(checkpoint=str(checkpoint), cache_dir=cache_dir)
    program.start(Seat(rank=0, num_ranks=1, rendezvous=""))
    return program


def blocks_of(program: AvatarProgram, task: RenderTask) -> Iterator[FrameBlock]:
    return program.run(task, Unattended(lambda: False))


def run(program: AvatarProgram, task: RenderTask) -> list[FrameBlock]:
    return list(blocks_of(program, task))


def test_yields_9_frames_then_12_per_block_as_uint8_pictures(program: AvatarProgram) -> None:
    blocks = run(program, a_task(frames=30))
    assert [block.index for block in blocks] == [0, 1, 2]
    assert [block.frames.shape for block in blocks] == [(9, 64, 64, 3), (12, 64, 64, 3), (12, 64, 64, 3)]
    assert all(block.frames.dtype == np.uint8 and block.seconds > 0 for block in blocks)


def test_the_last_block_tells_what_memory_the_video_took(program: AvatarProgram) -> None:
    *others, last = run(program, a_task(frames=30))
    assert [block.peak_bytes for block in others] == [None, None]
    assert last.peak_bytes is not None
    assert 10 * 2**20 < last.peak_bytes < 2**40


def test_the_same_task_gives_the_same_bytes_again(program: AvatarProgram) -> None:
    assert digest(run(program, a_task())) == digest(run(program, a_task()))


def test_the_same_task_gives_the_same_bytes_in_another_process(program: AvatarProgram, small_checkpoint: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path\n"
        "from tests.engine.test_rank_program import started, a_task, digest, run\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "print(digest(run(started(Path(sys.argv[1]), cache_dir=Path('unused')), a_task())))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(small_checkpoint)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert found.stdout.strip() == digest(run(program, a_task()))


@pytest.mark.parametrize(
    "other",
    [a_task(seed=2), a_task(portrait=1), a_task(infer_frames=24), a_task(replace_reference=False)],
    ids=["seed", "inputs", "window", "reference"],
)
def test_another_task_gives_other_frames(program: AvatarProgram, other: RenderTask) -> None:
    assert digest(run(program, a_task())) != digest(run(program, other))


def test_videos_in_a_row_never_see_each_other(program: AvatarProgram) -> None:
    alone = digest(run(program, a_task(portrait=1)))
    run(program, a_task(portrait=0))
    assert digest(run(program, a_task(portrait=1))) == alone


def test_interleaved_videos_never_see_each_other(program: AvatarProgram) -> None:
    tasks = [a_task(portrait=0), a_task(portrait=1, frames=40, infer_frames=24)]
    alone = [digest(run(program, task)) for task in tasks]
    streams = [_numbered(number, program, task) for number, task in enumerate(tasks)]
    mixed = [item for item in chain.from_iterable(zip_longest(*streams)) if item is not None]
    together = [digest([block for number, block in mixed if number == wanted]) for wanted in range(2)]
    assert together == alone


def _numbered(number: int, program: AvatarProgram, task: RenderTask) -> Iterator[tuple[int, FrameBlock]]:
    return ((number, block) for block in blocks_of(program, task))


def test_an_abandoned_video_leaves_the_next_one_untouched(program: AvatarProgram) -> None:
    alone = digest(run(program, a_task(portrait=1)))
    abandoned = blocks_of(program, a_task(portrait=0))
    next(abandoned)
    del abandoned
    assert digest(run(program, a_task(portrait=1))) == alone


def test_a_cancel_takes_effect_at_the_next_block_border(program: AvatarProgram) -> None:
    made: list[FrameBlock] = []
    for block in program.run(a_task(frames=60), Unattended(lambda: len(made) == 2)):
        made.append(block)  # noqa: PERF402  (`made` must grow while the render goes on)
    assert [block.index for block in made] == [0, 1]


def test_a_longer_video_begins_like_a_shorter_one(program: AvatarProgram) -> None:
    short, long = run(program, a_task(frames=24)), run(program, a_task(frames=60))
    assert digest(short) == digest(long[: len(short)])


def test_bfloat16_runs_through_every_network_and_stays_near_float32(
    program: AvatarProgram, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement = Placement(torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(networks, "default_placement", lambda: placement)
    rounded = started(small_checkpoint, cache_dir=Path("unused"))
    exact = run(program, a_task())
    for block, other in zip(exact, run(rounded, a_task()), strict=True):
        difference = np.abs(block.frames.astype(int) - other.frames.astype(int))
        assert difference.mean() < MEAN_BFLOAT16_DIFFERENCE, block.index


def test_the_consumer_is_not_in_inference_mode(program: AvatarProgram) -> None:
    for _ in blocks_of(program, a_task(frames=12)):
        assert not torch.is_inference_mode_enabled()


def test_frames_that_are_no_numbers_are_an_error() -> None:
    video = torch.zeros(3, 2, 8, 8)
    assert to_pixels(video).shape == (2, 8, 8, 3)
    video[1, 1, 3, 3] = float("nan")
    with pytest.raises(NotFiniteError, match="NaN"):
        to_pixels(video)
