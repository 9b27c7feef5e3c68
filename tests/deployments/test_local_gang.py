"""A gang of a command's own: what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_cluster.inventory import Gpu
from ray_cluster.nvml import NoGpus
from serve_app.deployments import local_gang
from serve_app.deployments.local_gang import LocalGangSource, usable_gpus
from serve_app.errors import InvalidRequestError
from serve_app.planning.layout import ParallelLayout
from serve_app.schemas.config import AppConfig
from tests.engine.test_rank_program import a_task

GIB = 2**30
CARDS = tuple(Gpu(index=index, kind="RTX4090", total_bytes=24 * GIB, free_bytes=23 * GIB) for index in range(4))


def test_a_layout_of_more_ranks_than_gpus_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_gang, "local_gpus", lambda: CARDS)
    config = AppConfig(cache_dir=tmp_path, cuda_visible_devices="2,3")
    with (
        LocalGangSource(ParallelLayout(stages=4, vae=1), checkpoint="tiny", config=config, on_start=print) as source,
        pytest.raises(
            InvalidRequestError, match=r"stages=4,vae=1 has 5 ranks, .* 2 may be used; use a layout of at most"
        ),
    ):
        next(source.frames(a_task(), is_cancelled=lambda: False))


@pytest.mark.parametrize(
    ("variable", "usable"), [(None, 4), ("", 0), ("-1", 0), ("1", 1), ("0, 2,3", 3), ("0,1,2,3,4,5", 4)]
)
def test_gpus_that_cuda_hides_are_not_usable(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, usable: int
) -> None:
    monkeypatch.setattr(local_gang, "local_gpus", lambda: CARDS)
    assert usable_gpus(variable) == usable


def test_without_gpus_none_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_gang, "local_gpus", lambda: NoGpus("no driver", is_fault=False))
    assert usable_gpus("0,1") == 0
