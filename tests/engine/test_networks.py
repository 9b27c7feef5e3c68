"""What a rank tells of its networks and its card."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from serve_app.distributed.mesh import Mesh
from serve_app.engine.networks import Networks
from serve_app.planning.layout import ParallelLayout
from serve_app.task import CARD_BYTES

NOTHING = Networks(None, None, None)


def mesh_on(device: str) -> Mesh:
    return cast(Mesh, SimpleNamespace(device=torch.device(device), layout=ParallelLayout.parse("single")))


def test_a_rank_with_a_gpu_tells_how_much_memory_its_card_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda: Any = torch.cuda
    monkeypatch.setattr(cuda, "memory_allocated", lambda _: 7)
    monkeypatch.setattr(cuda, "mem_get_info", lambda _: (70, 80))
    facts = NOTHING.facts(mesh_on("cuda"))
    assert (facts["device"], facts["allocated_bytes"], facts[CARD_BYTES]) == ("cuda", 7, 80)


def test_a_rank_on_the_cpu_tells_of_no_card() -> None:
    assert dict(NOTHING.facts(mesh_on("cpu"))) == {"device": "cpu", "layout": "single"}
