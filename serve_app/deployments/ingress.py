"""Ingress: the HTTP API as a Serve deployment; any number of replicas, which know nothing that is not stored."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.api import flow_proxy
from serve_app.api.app import build_api
from serve_app.deployments.dispatcher import STORE_NAME
from serve_app.deployments.remote_service import RemoteService
from serve_app.schemas.service import ServiceConfig
from serve_app.storage.files import FileStore
from serve_app.storage.videos import VideoFiles

log = logging.getLogger(__name__)


@serve.ingress()
class Ingress:
    """Holds no state of its own. `groups` are named so that Serve deploys them with the application."""

    def __init__(
        self, config: ServiceConfig, dispatcher: DeploymentHandle[Any], groups: list[DeploymentHandle[Any]]
    ) -> None:
        self._config = config
        self._dispatcher = dispatcher
        self._groups = groups
        check_proxies(os.environ)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Returns the ASGI application; Serve calls this once the handles are there."""
        config = self._config
        service = RemoteService(self._dispatcher, config.data_dir / STORE_NAME, call_s=config.times.call_s)
        return build_api(
            service,
            files=FileStore(config.data_dir),
            videos=VideoFiles(config.data_dir),
            config=config,
            names_answers=False,  # Serve's proxy does
        )


def check_proxies(environment: Mapping[str, str]) -> None:
    """Warns unless the proxies, whose environment is that of their nodes, tell what clients take."""
    if environment.get(flow_proxy.SETTING) != flow_proxy.IMPORT_PATH:
        log.warning(
            "a reader that stops reading costs the memory of all that it leaves unread",
            extra={"remedy": f"start Ray with {flow_proxy.SETTING}={flow_proxy.IMPORT_PATH} on every node"},
        )
