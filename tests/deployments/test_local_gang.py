"""A gang of a command's own: what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_cluster.inventory import Gpu
from serve_app.deployments import local_gang
from serve_app.deployments.local_gang import LocalGangSource
from serve_app.errors import InvalidRequestError
from serve_app.planning.layout import ParallelLayout
from serve_app.schemas.config import AppConfig
from tests.engine.test_rank_program import a_task

GIB = 2**30


def test_a_layout_of_more_ranks_than_gpus_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = tuple(Gpu(index=index, kind="RTX4090", total_bytes=24 * GIB, free_bytes=23 * GIB) for index in range(2))
    monkeypatch.setattr(local_gang, "local_gpus", lambda: cards)
    config = AppConfig(cache_dir=tmp_path)
    with (
        LocalGangSource(ParallelLayout(stages=4, vae=1), checkpoint="tiny", config=config, on_start=print) as source,
        pytest.raises(InvalidRequestError, match=r"stages=4,vae=1 has 5 ranks, .* has 2; use a layout of at most 2"),
    ):
        next(source.frames(a_task(), is_cancelled=lambda: False))
