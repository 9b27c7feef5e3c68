"""Limits of bulk jobs that contradict each other are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from serve_app.schemas.bulk import BulkConfig, BulkLimits
from serve_app.schemas.config import GangLimits


def test_a_driver_that_lives_never_counts_as_gone() -> None:
    with pytest.raises(
        ValidationError, match=r"stale_after_s 8 is not above 2 x heartbeat_every_s 4: .*raise the first"
    ):
        BulkLimits(heartbeat_every_s=4, stale_after_s=8)
    assert BulkLimits(heartbeat_every_s=4, stale_after_s=9).stale_after_s == 9


def test_a_job_does_not_end_while_its_groups_load() -> None:
    gang = GangLimits(placement_s=100, start_s=5000)
    with pytest.raises(ValidationError, match=r"no_lane_s 3600 is not above gang.placement_s \+ gang.start_s 5100: "):
        BulkConfig(gang=gang)
    assert BulkConfig(gang=gang, limits=BulkLimits(no_lane_s=5101)).limits.no_lane_s == 5101
