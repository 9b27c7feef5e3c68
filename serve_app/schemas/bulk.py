"""BulkConfig: what a bulk job may take and how patient it is."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from serve_app.schemas.config import AppConfig, Frozen
from serve_app.schemas.service import PoolConfig


class BulkLimits(Frozen):
    """How often rows are tried, when the job pauses, and every wait, in seconds."""

    max_attempts: int = Field(default=3, ge=1)
    retry_after_s: float = Field(default=10.0, ge=0)
    """Before the second attempt of a row; twice that before the third."""
    max_brought_down: int = Field(default=2, ge=1)
    """A row under which so many groups failed is left alone."""
    breaker_window: int = Field(default=20, ge=1)
    breaker_share: float = Field(default=0.2, ge=0, lt=1)
    """The job pauses when more than this part of the last attempts failed through no fault of their rows."""
    row_factor: float = Field(default=3.0, ge=1)
    """A row may take so many times what is predicted, at the pace of the rows before it."""
    row_least_s: float = Field(default=300.0, gt=0)
    row_most_s: float | None = Field(default=None, gt=0)
    """Bounds of that; without the second there is none."""
    progress_every_s: float = Field(default=3.0, gt=0)
    sync_every_s: float = Field(default=60.0, gt=0)
    """Reports that grow are copied to object storage so often."""
    heartbeat_every_s: float = Field(default=5.0, gt=0)
    stale_after_s: float = Field(default=30.0, gt=0)
    """A driver whose heartbeat stands still for so long is gone, and its output folder free."""
    stop_s: float = Field(default=30.0, gt=0)
    """Rows that shall stop come to their next block border within this time."""
    lane_silence_s: float = Field(default=60.0, gt=0)
    """A leader that does not answer for so long is replaced."""
    no_lane_s: float = Field(default=3600.0, gt=0)
    """So long rows wait for a group to be ready, for a cluster that lost a node may get another; then the job ends."""
    watch_every_s: float = Field(default=2.0, gt=0)
    """How often a folder is looked at for new rows."""
    check_threads: int = Field(default=4, ge=1)
    """Rows whose inputs are read at once."""

    @model_validator(mode="after")
    def _check_heartbeat(self) -> Self:
        if self.stale_after_s <= 2 * self.heartbeat_every_s:
            raise ValueError(
                f"stale_after_s {self.stale_after_s:g} is not above 2 x heartbeat_every_s {self.heartbeat_every_s:g}: "
                "a driver that lives would count as gone; raise the first or lower the second"
            )
        return self


class BulkConfig(AppConfig):
    """A bulk job: the groups that it makes for itself, `pool.min_groups` of them, and its limits."""

    pool: PoolConfig = PoolConfig(name="bulk", model="live-avatar-tiny")
    limits: BulkLimits = BulkLimits()

    @model_validator(mode="after")
    def _check_groups_can_start(self) -> Self:
        least_s = self.gang.placement_s + self.gang.start_s
        if self.limits.no_lane_s <= least_s:
            raise ValueError(
                f"limits.no_lane_s {self.limits.no_lane_s:g} is not above gang.placement_s + gang.start_s "
                f"{least_s:g}: a job would end while its groups load; raise the first or lower the others"
            )
        return self
