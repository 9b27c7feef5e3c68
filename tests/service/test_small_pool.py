"""A pool that is too small for what is asked of it: the nearest that fits, taken where the client agrees."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from tests.service.conftest import SETTINGS, Server, served

WISH = {"size": "256x256", "seed": 3}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Server]:
    """A service whose group holds the tiny model, and little more."""
    (pool,) = SETTINGS["pools"]
    with served(tmp_path_factory.mktemp("small"), cache, pools=[{**pool, "cpu_memory_gib": 1.0}]) as running:
        yield running


def sides_of(mp4: bytes) -> str:
    with av.open(io.BytesIO(mp4)) as container:
        frame = next(container.decode(video=0))
        return f"{frame.width}x{frame.height}"


def test_who_accepts_alternatives_gets_the_nearest_that_fits_and_a_warning(small: Server) -> None:
    refused = small.post(**WISH)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "never_fits")
    details = refused.json()["error"]["details"]
    assert details["needed_bytes"] > details["available_bytes"] == 2**30
    nearest = details["nearest"][0]
    assert nearest["size"] != WISH["size"]
    planned = small.post("/v1/videos/plan", accept_alternatives=True, **WISH).json()
    video = small.create(accept_alternatives=True, **WISH)
    for told in (planned, video):
        assert told["size"] == nearest["size"]
        assert [warning["code"] for warning in told["warnings"]] == ["alternative_taken"]
        assert nearest["change"] in told["warnings"][0]["message"]
    ended = small.ended(video["id"])
    assert (ended["status"], ended["size"], ended["warnings"]) == ("completed", nearest["size"], video["warnings"])
    assert sides_of(small.content(video["id"])) == nearest["size"]


def test_who_asks_for_what_fits_gets_that_without_a_warning(small: Server) -> None:
    video = small.create(size="64x64", accept_alternatives=True)
    assert (video["size"], video["warnings"]) == ("64x64", [])
    assert small.ended(video["id"])["status"] == "completed"
