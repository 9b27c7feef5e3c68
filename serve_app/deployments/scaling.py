"""How many groups a pool shall have, between its least and its most: one for each job that runs or waits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingContext


def groups_wanted(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Returns Serve's target for one pool, from what its leaders told (`RenderGroup.record_autoscaling_stats`).

    Every leader knows the whole queue of its pool, and of running jobs its own.
    """
    told: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
    busy = sum(told.get("busy", {}).values())
    waiting = max(told.get("waiting", {}).values(), default=0.0)
    wanted = math.ceil(busy + waiting)
    return max(context.capacity_adjusted_min_replicas, min(wanted, context.capacity_adjusted_max_replicas)), {}
