"""From what a user wrote to a bulk job and its lanes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from ray_cluster.inventory import local_gpus
from ray_cluster.nvml import NoGpus
from serve_app.bulk.checking import Judge
from serve_app.bulk.cluster import bulk_cluster, count_groups, told_of_ray
from serve_app.bulk.job import BulkJob, ExitCode, Listener, OpenLanes, run, validate
from serve_app.bulk.lanes.own import LanePlan, OwnLanes
from serve_app.bulk.lanes.service import LANES_PER_GROUP, ServiceLanes
from serve_app.bulk.lanes.service_client import ServiceModel, look_at_service
from serve_app.bulk.manifests.names import check_template
from serve_app.bulk.manifests.reading import ManifestSource, find_audios, find_manifest
from serve_app.bulk.output import open_output
from serve_app.bulk.row import BadRow, Document
from serve_app.bulk.service_plan import TINY_MODEL, judge_of, pool_of
from serve_app.errors import InvalidRequestError
from serve_app.jobs.admission import DoesNotFit, Fits
from serve_app.jobs.fleet import Fleet
from serve_app.jobs.job import Priority
from serve_app.jobs.submission import Submission
from serve_app.planning.calibration import load_calibration
from serve_app.planning.hardware import KINDS, is_called
from serve_app.planning.network import TINY_CHECKPOINT
from serve_app.planning.workload import Workload
from serve_app.rendering.frames import PROGRAM
from serve_app.schemas.bulk import BulkConfig, BulkLimits
from serve_app.schemas.config import GangLimits
from serve_app.schemas.render import invalid_field
from serve_app.schemas.service import PoolConfig

TINY_SIZE = "128*128"
ON_CPU = "none"
DEFAULT_URL = "http://127.0.0.1:8000"
_POOL = "bulk"


def run_bulk(
    settings: Document,
    *,
    listener: Listener,
    is_stopped: Callable[[], bool],
    program: str = PROGRAM,
    changes: Document = MappingProxyType({}),
) -> tuple[ExitCode, Document]:
    """Runs the job that the settings describe; see `job.run`.

    `program` is what ranks run, `changes` are to settings that no flag has.
    """
    if settings["pool"] == "serve":
        return _run_on_service(settings, changes, listener=listener, is_stopped=is_stopped)
    source, config = _source(settings), _config(settings, changes, gpu=_gpu(settings))
    wants_cpu = settings["gpus"] == ON_CPU
    with bulk_cluster(settings["address"], config, num_groups=settings["groups"], wants_cpu=wants_cpu) as num_groups:
        job = _job(settings, config, source, num_groups=num_groups, judge=_judge(config.pool))
        return run(job, _own(job, program), listener=listener, is_stopped=is_stopped)


def validate_bulk(settings: Document, *, on_bad: Callable[[Document], None]) -> Document:
    """Returns the plan of the job that the settings describe; `on_bad` gets the lines of errors.jsonl."""
    source = _source(settings)
    if settings["pool"] == "serve":
        job = _service_job(settings, {}, source, _service(settings))
    else:
        config = _config(settings, {}, gpu=_gpu(settings))
        num_groups = settings["groups"] or count_groups(config)
        job = _job(settings, config, source, num_groups=num_groups, judge=_judge(config.pool))

    def tell(row: BadRow) -> None:
        on_bad(row.as_json())

    return validate(job, on_bad=tell)


def _run_on_service(
    settings: Document, changes: Document, *, listener: Listener, is_stopped: Callable[[], bool]
) -> tuple[ExitCode, Document]:
    """Renders by a running service; it judges what fits, and this machine only passes rows on."""
    source, service = _source(settings), _service(settings)
    job = _service_job(settings, changes, source, service)
    with bulk_cluster(settings["address"], BulkConfig(), num_groups=1, wants_cpu=True):

        @contextmanager
        def open_lanes(run_id: str, _: Callable[[], bool]) -> Iterator[ServiceLanes]:
            with told_of_ray(), ServiceLanes(service, output=job.output, run_id=run_id) as lanes:
                yield lanes

        return run(job, open_lanes, listener=listener, is_stopped=is_stopped)


def _service(settings: Document) -> ServiceModel:
    return look_at_service((settings["url"] or DEFAULT_URL).rstrip("/"))


def _service_job(settings: Document, changes: Document, source: ManifestSource, service: ServiceModel) -> BulkJob:
    config = _config(settings, {**changes, "pool": pool_of(service)}, gpu=service.gpu)
    judge = judge_of(service, config.pool)
    job = _job(settings, config, source, num_groups=service.num_groups, judge=judge)
    return replace(job, lanes_per_group=LANES_PER_GROUP)


def _own(job: BulkJob, program: str) -> OpenLanes:
    @contextmanager
    def open_lanes(run_id: str, is_stopped: Callable[[], bool]) -> Iterator[OwnLanes]:
        plan = LanePlan(job.config, job.output, run_id, program)
        with told_of_ray(), OwnLanes(plan, num_lanes=job.num_groups, is_abandoned=is_stopped) as lanes:
            yield lanes

    return open_lanes


def _job(settings: Document, config: BulkConfig, source: ManifestSource, *, num_groups: int, judge: Judge) -> BulkJob:
    size = TINY_SIZE if config.pool.checkpoint == TINY_CHECKPOINT else None
    return BulkJob(
        source=source,
        output="" if settings["out"] is None else open_output(settings["out"]).uri(),
        config=config,
        judge=judge,
        num_groups=num_groups,
        defaults={**_default_size(size, settings["defaults"]), **settings["defaults"]},
        watches=settings["watch"],
        aborts_on_invalid=settings["aborts_on_invalid"],
        name=_archive_template(settings),
        about={"manifest": settings["manifest"] or settings["audio_dir"], "command": sys.argv},
    )


def _default_size(size: str | None, given: Document) -> Document:
    """Returns the size of rows that say nothing of it; a preset for all of them has one of its own."""
    return {} if size is None or "preset" in given else {"size": size}


def _source(settings: Document) -> ManifestSource:
    if settings["audio_dir"] is None:
        return find_manifest(settings["manifest"])
    named = {} if settings["name"] is None else {"name": settings["name"]}
    fields = {"prompt": settings["prompt"]}
    return find_audios(settings["audio_dir"], image=settings["image"], fields=fields, **named)


def _archive_template(settings: Document) -> str | None:
    if not settings["archive"]:
        return None
    if settings["audio_dir"] is not None or settings["name"] is None:
        return "{custom_id}"
    return check_template(settings["name"])


def _config(settings: Document, changes: Document, *, gpu: str | None) -> BulkConfig:
    """Returns the configuration; raises InvalidRequestError that names the setting, its value and the rule."""
    checkpoint = settings["checkpoint"] or TINY_CHECKPOINT
    if checkpoint != TINY_CHECKPOINT:
        checkpoint = str(Path(checkpoint).absolute())  # leaders may work in another folder
    pool: dict[str, Any] = {
        "name": _POOL,
        "model": TINY_MODEL if checkpoint == TINY_CHECKPOINT else "live-avatar",
        "checkpoint": checkpoint,
        "gpu": gpu,
        "threads_per_rank": BulkConfig().threads if gpu is None else None,
        **{name: settings[name] for name in ("layout", "cpus_per_rank", "leader_cpus") if settings[name] is not None},
        **changes.get("pool", {}),
    }
    limits = {"row_most_s": settings["row_timeout_s"], "max_attempts": settings["max_attempts"]}
    given = {name: value for name, value in limits.items() if value is not None}
    try:
        return BulkConfig(
            pool=PoolConfig(**pool),
            limits=BulkLimits(**given, **changes.get("limits", {})),
            gang=GangLimits(**changes.get("gang", {})),
        )
    except ValidationError as error:
        raise invalid_field(error, known=PoolConfig.model_fields) from error


def _gpu(settings: Document) -> str | None:
    """Returns the kind of card: as said, else that of this machine; None: ranks compute on the CPU."""
    if settings["gpus"] is not None:
        return None if settings["gpus"] == ON_CPU else str(settings["gpus"])
    if settings["pool"] == "serve" or settings["address"] is not None:
        return None
    found = local_gpus()
    if isinstance(found, NoGpus):
        return None
    for kind in KINDS.values():
        if all(is_called(kind, gpu.kind) for gpu in found):
            return kind.name
    raise InvalidRequestError(
        f"the cards of this machine are {', '.join(sorted({gpu.kind for gpu in found}))}, of no one known kind",
        remedy=f"name the kind, or memory, of the smallest with --gpus: {', '.join(KINDS)}; or none for the CPU",
        param="gpus",
    )


def _judge(pool: PoolConfig) -> Judge:
    """Returns admission's own verdict for groups of this pool."""
    fleet = Fleet([pool], calibration=load_calibration(), cpu_bytes=_memory_bytes())

    def judge(work: Workload) -> Fits | DoesNotFit:
        return fleet.judge(Submission(model=pool.model, spec={}, work=work, priority=Priority.BULK), pool.name)

    return judge


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
