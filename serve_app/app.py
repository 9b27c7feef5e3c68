"""The Serve application: which deployments there are, what each may take, and how they know each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serve_app.deployments.dispatcher import Dispatcher
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.render_group import RenderGroup, group_bundles
from serve_app.deployments.scaling import groups_wanted
from serve_app.errors import InvalidRequestError
from serve_app.schemas.service import PoolConfig, ServiceConfig

_LIGHT_CPUS = 0.1
"""Of Dispatcher and API: they wait most of the time."""
_DISPATCHER_CALLS = 1000
_SPARE_CALLS = 100
_STOP_S = 60.0
"""For a leader to end its ranks after its video."""


def build_app(settings: Mapping[str, Any] | ServiceConfig) -> Application:
    """Returns the application for `serve run`, `serve deploy` and RayService: `settings` are the YAML's `args`.

    Raises InvalidRequestError when they are no ServiceConfig, or would let everybody in without saying so.
    """
    config = settings if isinstance(settings, ServiceConfig) else ServiceConfig.from_settings(dict(settings))
    if not config.allow_anonymous:
        raise InvalidRequestError(
            "allow_anonymous is false, and this version has no keys: nobody could use the service",
            remedy="set allow_anonymous: true, and let a firewall or NetworkPolicy decide who reaches its port",
            param="allow_anonymous",
        )
    dispatcher = _dispatcher(config).bind(config)
    groups = [_group(config, pool).bind(config, pool, dispatcher) for pool in config.pools]
    application: Application = _ingress(config).bind(config, dispatcher, groups)
    return application


def _dispatcher(config: ServiceConfig) -> serve.Deployment:
    return serve.deployment(
        name="Dispatcher",
        num_replicas=1,
        max_ongoing_requests=_DISPATCHER_CALLS,
        ray_actor_options=_light(config),
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.5,
    )(Dispatcher)


def _ingress(config: ServiceConfig) -> serve.Deployment:
    return serve.deployment(
        name="Ingress",
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=config.api.max_streams + _SPARE_CALLS,
        ray_actor_options=_light(config),
        graceful_shutdown_timeout_s=20,
    )(Ingress)


def _light(config: ServiceConfig) -> dict[str, Any]:
    here = {} if config.control_resource is None else {config.control_resource: 0.01}
    return {"num_cpus": _LIGHT_CPUS, "resources": here}


def _group(config: ServiceConfig, pool: PoolConfig) -> serve.Deployment:
    bundles = group_bundles(pool)
    return serve.deployment(
        name=f"group-{pool.name}",
        **_replicas(pool),
        ray_actor_options={"num_cpus": bundles.leader_cpus},
        placement_group_bundles=bundles.as_list(),
        placement_group_strategy=bundles.strategy.value,
        graceful_shutdown_timeout_s=config.times.drain_s + _STOP_S,
    )(RenderGroup)


def _policy() -> AutoscalingPolicy:
    untyped: Any = AutoscalingPolicy
    policy: AutoscalingPolicy = untyped(policy_function=groups_wanted)
    return policy


def _replicas(pool: PoolConfig) -> dict[str, Any]:
    if pool.min_groups == pool.max_groups:
        return {"num_replicas": pool.min_groups}
    scaling = AutoscalingConfig(
        min_replicas=pool.min_groups,
        max_replicas=pool.max_groups,
        upscale_delay_s=pool.scale_up_after_s,
        downscale_delay_s=pool.scale_down_after_s,
        policy=_policy(),
    )
    return {"autoscaling_config": scaling}
