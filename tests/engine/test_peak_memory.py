"""The memory of a video: what the last block tells is the most of any rank, wherever that rank stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from serve_app.engine import peak_memory
from tests.distributed import ranks as plain_ranks
from tests.distributed.ranks import ranks
from tests.engine.test_rank_program import a_task

serve = plain_ranks._serve
MOST, LESS = 2000, 1000


def serve_with_invented_memory(rank: int, *given: Any) -> None:
    """What the process of a rank does; with the first task rank 0 takes the most, then rank 1, and so on."""
    begun: list[torch.device] = []
    peak_memory.reset_peak = begun.append
    peak_memory.peak_bytes = lambda _: MOST if len(begun) == rank + 1 else LESS + rank
    serve(rank, *given)


@pytest.mark.parametrize(
    "layout", ["single", "stages=3", "ulysses=2", "vae=2", "stages=2,ulysses=2", "stages=2,ulysses=2,vae=2"]
)
def test_the_last_block_tells_the_most_that_any_rank_took(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setattr(plain_ranks, "_serve", serve_with_invented_memory)
    with ranks(small_checkpoint, layout) as gang:
        for _ in range(gang.num_ranks):
            answers = gang._answers_to(a_task(frames=30), None, 0)
            blocks = [block for made, _ in answers for block in made]
            assert [block.peak_bytes for block in blocks] == [None, None, MOST]


def test_on_the_cpu_it_is_what_the_process_ever_held() -> None:
    cpu = torch.device("cpu")
    resident_bytes = psutil.Process().memory_info().rss
    peak_bytes = peak_memory.peak_bytes(cpu)
    assert resident_bytes * 0.9 < peak_bytes < psutil.virtual_memory().total
    peak_memory.reset_peak(cpu)
    assert peak_memory.peak_bytes(cpu) >= peak_bytes
