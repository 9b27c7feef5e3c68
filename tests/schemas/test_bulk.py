"""Limits of bulk jobs that contradict each other are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from serve_app.schemas.bulk import BulkLimits


def test_a_driver_that_lives_never_counts_as_gone() -> None:
    with pytest.raises(
        ValidationError, match=r"stale_after_s 8 is not above 2 x heartbeat_every_s 4: .*raise the first"
    ):
        BulkLimits(heartbeat_every_s=4, stale_after_s=8)
    assert BulkLimits(heartbeat_every_s=4, stale_after_s=9).stale_after_s == 9
