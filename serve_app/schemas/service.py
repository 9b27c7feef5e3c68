"""ServiceConfig: what an operator sets for the service, in code or as the `args` of a Serve application's YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from serve_app.errors import InvalidRequestError
from serve_app.planning.hardware import parse_gpus
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.network import TINY_CHECKPOINT
from serve_app.schemas.config import AppConfig, Frozen

_WAITS_FOR_REPORTS = {
    "lost_after_s": "groups that are well would count as lost",
    "grace_s": "a new Dispatcher would give up videos that are being made",
    "call_s": "leaders would give up reports that the Dispatcher only holds",
}
NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"


def _layout(text: str) -> str:
    return str(ParallelLayout.parse(text))


def _gpu(text: str) -> str:
    return parse_gpus(text).kind.name


class PoolConfig(Frozen):
    """Replica groups of one kind: the same checkpoint in the same layout on the same cards.

    `gpu` is the kind of card that each rank has, as `plan --gpus` spells it without a count; None: ranks compute on
    the CPU. Serve keeps between `min_groups` and `max_groups` of them.
    """

    name: str = Field(pattern=NAME)
    model: str = Field(default="live-avatar", pattern=NAME)
    """What requests call the checkpoint: several pools may serve one model in several layouts."""
    checkpoint: str = TINY_CHECKPOINT
    layout: Annotated[str, AfterValidator(_layout)] = "single"
    gpu: Annotated[str, AfterValidator(_gpu)] | None = None
    min_groups: int = Field(default=1, ge=1)
    max_groups: int = Field(default=1, ge=1)
    cpus_per_rank: float = Field(default=1.0, ge=0)
    leader_cpus: float = Field(default=1.0, gt=0)
    cpu_memory_gib: float | None = Field(default=None, gt=0)
    """Without cards: memory that the ranks of a group share; None: all of the machine's."""
    threads_per_rank: int | None = Field(default=None, ge=1)
    """Compute threads of a rank; None: one for each of its CPUs."""
    spreads_over_nodes: bool = False
    """For groups wider than a node."""
    node_resource: str | None = Field(default=None, pattern=NAME)
    """A custom resource of Ray that the nodes with this pool's cards have; None: any node with a free card."""
    scale_up_after_s: float = Field(default=30, ge=0)
    """So long more groups must be wanted than there are; then another one starts, up to `max_groups`."""
    scale_down_after_s: float = Field(default=600, ge=0)
    """So long fewer groups must be wanted; then one is drained, down to `min_groups`."""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.min_groups > self.max_groups:
            raise ValueError(f"min_groups {self.min_groups} is above max_groups {self.max_groups}")
        return self

    @property
    def gpus_per_rank(self) -> float:
        return 0.0 if self.gpu is None else 1.0

    @property
    def num_ranks(self) -> int:
        return ParallelLayout.parse(self.layout).world_size


class QueueLimits(Frozen):
    """What is accepted, and how carefully."""

    max_waiting: int = Field(default=10_000, ge=1)
    bulk_floor: float = Field(default=0.1, ge=0, lt=1)
    """Part of the groups' time that bulk always gets."""
    margin_ratio: float = Field(default=0.05, ge=0)
    margin_s: float = Field(default=1.0, ge=0)
    """How much longer than predicted a job may take: a part of the prediction, and seconds."""


class ServiceTimes(Frozen):
    """Every wait of the service, in seconds."""

    report_every_s: float = Field(default=1.0, ge=0.1, le=5)
    """Leaders tell the Dispatcher how far they are."""
    lost_after_s: float = Field(default=10.0, gt=1)
    """A group whose leader reports nothing for so long counts as lost."""
    grace_s: float = Field(default=5.0, gt=0)
    """A new Dispatcher waits so long for reports of what runs before it admits and starts anything."""
    drain_s: float = Field(default=4 * 3600.0, gt=0)
    """A group that is taken away finishes its video within this time."""
    call_s: float = Field(default=30.0, gt=0)
    """A call from the API to the Dispatcher; also how long the API looks for one that is restarting."""
    keep_s: float = Field(default=7 * 24 * 3600.0, gt=0)
    """Videos, their jobs and uploaded files are kept so long."""

    @model_validator(mode="after")
    def _check_reports_come_in_time(self) -> Self:
        """A report is held for up to `report_every_s`, and one may get lost: whoever waits for it waits for two."""
        least_s = 2 * self.report_every_s
        for name, otherwise in _WAITS_FOR_REPORTS.items():
            value_s = getattr(self, name)
            if value_s < least_s:
                raise ValueError(
                    f"{name} {value_s:g} is less than twice report_every_s {self.report_every_s:g}: {otherwise}; "
                    f"give {name} {least_s:g} or more, or a lower report_every_s"
                )
        return self


class ApiLimits(Frozen):
    """What a request may be, before anything in it is decoded."""

    max_body_bytes: int = Field(default=256 * 2**20, gt=0)
    """One request with its files; data: URIs are in JSON, and limited by `max_json_bytes`."""
    max_json_bytes: int = Field(default=32 * 2**20, gt=0)
    max_streams: int = Field(default=1000, ge=1)
    """Event streams and live readers of one API replica at once."""
    max_sync_s: float = Field(default=3600.0, gt=0)
    """How long POST /v1/videos/sync waits."""


class ServiceConfig(AppConfig):
    """The service: its groups, where it keeps jobs and files, and its limits.

    `data_dir` holds the job store, uploads and videos; every node that runs a group, the Dispatcher or an API replica
    must see it under the same path. The job store is a file of SQLite in it, so API replicas run on the Dispatcher's
    node. `allow_anonymous` lets everybody in who reaches the port: without it the application does not start, as
    there are no keys yet.
    """

    data_dir: Path
    pools: tuple[PoolConfig, ...] = (PoolConfig(name="tiny", model="live-avatar-tiny"),)
    allow_anonymous: bool = False
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Names and addresses under which clients may reach the API, without port; "*": any. Web pages of other names
    cannot use the service through a visitor's browser."""
    control_resource: str | None = Field(default=None, pattern=NAME)
    """A custom resource of Ray that only the node has on which Dispatcher and API shall run; None: any node."""
    ingress_replicas: int = Field(default=1, ge=1)
    queue: QueueLimits = QueueLimits()
    times: ServiceTimes = ServiceTimes()
    api: ApiLimits = ApiLimits()
    default_priority: Literal["interactive", "standard", "bulk"] = "standard"

    @model_validator(mode="after")
    def _check_pools(self) -> Self:
        names = [pool.name for pool in self.pools]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"pools {names} are not one or more of different names")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The names of all models, that of the first pool first: it is what a request gets that names none."""
        return tuple(dict.fromkeys(pool.model for pool in self.pools))

    @classmethod
    def from_settings(cls, settings: object) -> Self:
        """Checks what an operator wrote; raises InvalidRequestError that names the setting, its value and the rule."""
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "pools"
            raise InvalidRequestError(
                f"setting {name}: {first['msg']}", remedy="correct it in the configuration of the service", param=name
            ) from error
