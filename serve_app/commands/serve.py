"""`live-avatar serve`: the service on this machine, until it is stopped."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import yaml

from serve_app.errors import InvalidRequestError
from serve_app.rendering.import_path import import_object
from serve_app.schemas.config import AppConfig
from serve_app.schemas.service import ServiceConfig

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104
_LOOK_EVERY_S = 0.5


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `serve`; what they do not say, a YAML with the fields of ServiceConfig may."""
    add = parser.add_argument
    add("--host", default=DEFAULT_HOST, help=f"address to listen on (default {DEFAULT_HOST}: this machine alone)")
    add("--port", type=int, default=DEFAULT_PORT, help=f"port to listen on (default {DEFAULT_PORT})")
    add("--data-dir", type=Path, help="folder of the job store, uploads and videos (default: in the user's cache)")
    add("--config", type=Path, metavar="FILE", help="YAML with pools and limits (default: one group, the tiny model)")
    add("--allow-anonymous", action="store_true", help="let everybody in who reaches a --host that is not this machine")
    parser.set_defaults(run=_serve, parser=parser)


def _serve(options: argparse.Namespace) -> int:
    config = service_config(
        _settings(options.config),
        data_dir=options.data_dir,
        allow_anonymous=options.allow_anonymous or is_loopback(options.host),
    )
    _check_reach(options.host, config)
    config = reachable(config, options.host)
    url = url_of(options.host, options.port)
    local_service: Any = import_object("serve_app.local_service:local_service")
    wait_for_groups: Any = import_object("serve_app.local_service:wait_for_groups")
    print(f"starting; jobs and videos are kept in {config.data_dir}", flush=True)
    with (
        options.stopping_later(),
        local_service(config, host=options.host, port=options.port, is_cancelled=options.is_stopped),
    ):
        print(
            f"listening on {url}: {url}/docs describes the API; Ctrl-C stops, accepted jobs go on next time", flush=True
        )
        if wait_for_groups(url, timeout_s=config.gang.start_s, is_cancelled=options.is_stopped):
            print(f"ready: {', '.join(config.models)}", flush=True)
        while not options.is_stopped():
            time.sleep(_LOOK_EVERY_S)
    return 0


def service_config(settings: dict[str, object], *, data_dir: Path | None, allow_anonymous: bool) -> ServiceConfig:
    """Returns the configuration of a service on this machine; flags win over `settings`."""
    chosen = data_dir or settings.get("data_dir") or AppConfig().cache_dir / "service"
    merged = {**settings, "data_dir": Path(str(chosen)).absolute()}
    if allow_anonymous:
        merged["allow_anonymous"] = True
    return ServiceConfig.from_settings(merged)


def reachable(config: ServiceConfig, host: str) -> ServiceConfig:
    """Returns the configuration with the names under which clients reach `host`: any, where it is every address."""
    if is_loopback(host):
        return config
    names = ("*",) if host in EVERY_ADDRESS else (*config.allowed_hosts, host)
    return config.model_copy(update={"allowed_hosts": names})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def url_of(host: str, port: int) -> str:
    """Returns where a server on `host` is reached from this machine."""
    reached = DEFAULT_HOST if host in EVERY_ADDRESS else host
    return f"http://{reached}:{port}"


def _settings(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _no_config(path, f"cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise _no_config(path, "is no YAML mapping")
    return settings


def _no_config(path: Path, reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f'"{path}" {reason}', remedy="write the fields of the service, for example `pools:`", param="config"
    )


def _check_reach(host: str, config: ServiceConfig) -> None:
    if config.allow_anonymous:
        return
    raise InvalidRequestError(
        f"--host {host} lets other machines in, and this version has no keys",
        remedy="use --allow-anonymous if a firewall decides who reaches it, or --host 127.0.0.1",
        param="host",
    )
