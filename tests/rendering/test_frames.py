"""Frames in file time, and the source that computes in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ray_cluster.program import RunControl, Seat
from serve_app.errors import CheckpointError, RenderCancelledError
from serve_app.planning.geometry import Timeline
from serve_app.rendering import frames as frames_module
from serve_app.rendering.frames import InProcessSource, in_file_time, rank_environment
from serve_app.task import FrameBlock, RenderTask


def numbered_blocks(num_blocks: int) -> Iterator[FrameBlock]:
    """Yields blocks of 9, 12, 12, ... frames whose pixels hold the frame's place in what the engine makes."""
    made = iter(range(10_000))
    for index in range(num_blocks):
        numbers = np.array([next(made) for _ in range(9 if index == 0 else 12)], dtype=np.uint8)
        yield FrameBlock(index, np.broadcast_to(numbers[:, None, None, None], (len(numbers), 2, 2, 3)), seconds=0.0)


def shown(num_frames: int) -> list[list[int]]:
    """Returns, block by block, which of the engine's frames a file of so many frames shows."""
    timeline = Timeline(num_frames, infer_frames=48)
    return [[int(frame[0, 0, 0]) for frame in in_file_time(block, timeline)] for block in numbered_blocks(3)]


def test_the_first_frame_is_shown_four_times_so_that_every_block_has_12() -> None:
    assert shown(36) == [[0, 0, 0, *range(9)], list(range(9, 21)), list(range(21, 33))]


@pytest.mark.parametrize("num_frames", [25, 30, 35])
def test_the_last_block_ends_with_the_video(num_frames: int) -> None:
    assert [len(block) for block in shown(num_frames)] == [12, 12, num_frames - 24]
    assert shown(num_frames)[-1] == list(range(21, 21 + num_frames - 24))


@pytest.mark.parametrize(("num_frames", "expected"), [(1, [0]), (4, [0, 0, 0, 0]), (5, [0, 0, 0, 0, 1])])
def test_a_video_shorter_than_a_block_is_the_start_of_it(num_frames: int, expected: list[int]) -> None:
    timeline = Timeline(num_frames, infer_frames=48)
    [block] = numbered_blocks(1)
    frames = in_file_time(block, timeline)
    assert frames[:, 0, 0, 0].tolist() == expected
    assert frames.dtype == np.uint8


class CountedProgram:
    """Stands in for the engine: tells what it was loaded with and how often."""

    loaded: list[dict[str, object]]

    def __init__(self, **arguments: object) -> None:
        self.loaded.append(arguments)

    def start(self, seat: Seat) -> None:
        assert seat.num_ranks == 1

    def run(self, task: RenderTask, control: RunControl) -> Iterator[FrameBlock]:
        return numbered_blocks(0 if control.is_cancelled() else task.timeline.num_blocks)


def a_task() -> RenderTask:
    return RenderTask(
        prompt="A person talks.",
        image=np.zeros((64, 64, 3), dtype=np.uint8),
        speech=np.zeros(16_000, dtype=np.float32),
        timeline=Timeline(25, infer_frames=48),
        sample_steps=4,
        seed=1,
        replace_reference=True,
    )


def test_the_networks_are_loaded_for_the_first_task_and_kept_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountedProgram, "loaded", [], raising=False)
    monkeypatch.setattr(frames_module, "PROGRAM", f"{__name__}:CountedProgram")
    source = InProcessSource(checkpoint="tiny", cache_dir=tmp_path)
    assert CountedProgram.loaded == []
    for _ in range(2):
        blocks = list(source.frames(a_task(), is_cancelled=lambda: False))
        assert [block.index for block in blocks] == [0, 1, 2]
    assert CountedProgram.loaded == [{"checkpoint": "tiny", "cache_dir": tmp_path}]


@pytest.mark.parametrize(
    ("given", "allocator", "spins"),
    [
        ({}, "expandable_segments:True", "20000"),
        ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync", "HOME": "/"}, "backend:cudaMallocAsync", "20000"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}, "max_split_size_mb:512", "20000"),
        ({"PYTORCH_ALLOC_CONF": "", "PYTORCH_CUDA_ALLOC_CONF": "a:1"}, "", "20000"),
        ({"GOMP_SPINCOUNT": "0"}, "expandable_segments:True", "0"),
    ],
)
def test_the_environment_of_a_rank_is_the_users_where_it_says_something(
    given: dict[str, str], allocator: str, spins: str
) -> None:
    assert rank_environment(given) == {"PYTORCH_ALLOC_CONF": allocator, "GOMP_SPINCOUNT": spins}


def test_this_process_finds_it_before_the_networks_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountedProgram, "loaded", [], raising=False)
    monkeypatch.setattr(frames_module, "PROGRAM", f"{__name__}:CountedProgram")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that what the source sets is undone too
        monkeypatch.delenv(name)
    InProcessSource(checkpoint="tiny", cache_dir=tmp_path).frames(a_task(), is_cancelled=lambda: False)
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_a_video_that_ends_early_because_it_should_counts_as_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountedProgram, "loaded", [], raising=False)
    monkeypatch.setattr(frames_module, "PROGRAM", f"{__name__}:CountedProgram")
    blocks = InProcessSource(checkpoint="tiny", cache_dir=tmp_path).frames(a_task(), is_cancelled=lambda: True)
    with pytest.raises(RenderCancelledError):
        list(blocks)


def test_a_checkpoint_that_is_not_there_is_named_when_the_first_frame_is_asked_for(tmp_path: Path) -> None:
    source = InProcessSource(checkpoint=str(tmp_path / "ckpt"), cache_dir=tmp_path / "cache")
    with pytest.raises(CheckpointError, match="ckpt"):
        source.frames(a_task(), is_cancelled=lambda: False)
    assert list(tmp_path.iterdir()) == []
