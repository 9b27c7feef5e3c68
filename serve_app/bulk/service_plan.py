"""What can be said in advance of rows that a running service makes: what its groups are, how long they take."""

from __future__ import annotations

from statistics import median

from serve_app.bulk.checking import Judge
from serve_app.bulk.lanes.service_client import ServiceModel
from serve_app.bulk.row import Document
from serve_app.jobs.admission import Fits
from serve_app.jobs.fleet import Fleet
from serve_app.planning.calibration import load_calibration
from serve_app.planning.network import TINY_CHECKPOINT
from serve_app.planning.workload import Workload
from serve_app.schemas.service import PoolConfig

TINY_MODEL = "live-avatar-tiny"
_ANY_BYTES = 1 << 60
"""Of memory: whether a video fits is for the service to say."""


def pool_of(service: ServiceModel) -> Document:
    """Returns the settings of a pool that is like the service's groups."""
    checkpoint = TINY_CHECKPOINT if service.model == TINY_MODEL else service.model
    return {"model": service.model, "checkpoint": checkpoint, "layout": service.layout}


def judge_of(service: ServiceModel, pool: PoolConfig) -> Judge:
    """Returns what refuses nothing, and tells how long a group of the service takes when nobody else wants it.

    What the service says of its presets has its pace in it, and whatever else is not known here.
    """
    fleet = Fleet([pool], calibration=load_calibration(), cpu_bytes=_ANY_BYTES)
    here = {row["preset"]: row["seconds_per_video_second"] for row in fleet.table(pool.name) if row["fits"]}
    told = service.seconds_by_preset
    pace = median([told[name] / here[name] for name in here.keys() & told.keys()] or [1.0])

    def judge(work: Workload) -> Fits:
        return Fits(fleet.predicted_s(work, pool.name) * pace)

    return judge
