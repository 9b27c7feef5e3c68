"""`serve deploy`: a fleet from YAML; what is deployed anew, or taken away, finishes what it works on."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from serve_app.app import build_app
from serve_app.errors import InvalidRequestError
from serve_app.jobs.store import JobReader
from serve_app.metrics import Metric
from tests.end_to_end.conftest import environment
from tests.ray_cluster.heads import BIN, ray_head
from tests.service.conftest import ANSWER_S, READY_S, Server

FLEET = Path(__file__).parents[2] / "serve_app" / "samples" / "fleet.yaml"
LONG_S = 90.0


def unknown_keys(written: object, schema: type[BaseModel], *, at: str = "") -> list[str]:
    """Returns the keys that Ray's schema would silently leave out."""
    if not isinstance(written, Mapping):
        return []
    found = [f"{at}{key}" for key in written if key not in schema.model_fields]
    for name, field in schema.model_fields.items():
        inner = [kind for kind in getattr(field.annotation, "__args__", (field.annotation,)) if is_schema(kind)]
        values = written.get(name)
        for value in values if isinstance(values, list) else [values]:
            found += [key for kind in inner for key in unknown_keys(value, kind, at=f"{at}{name}.")]
    return found


def is_schema(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def test_the_fleet_of_the_samples_is_what_ray_and_the_service_accept() -> None:
    fleet = yaml.safe_load(FLEET.read_text())
    assert unknown_keys(fleet, ServeDeploySchema) == []
    assert unknown_keys({**fleet, "route_prefx": "/"}, ServeDeploySchema) == ["route_prefx"]
    (application,) = ServeDeploySchema.model_validate(fleet).applications
    assert application.import_path == "serve_app.app:build_app"
    assert build_app(application.args) is not None


def test_a_service_that_would_let_everybody_in_says_so_or_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="allow_anonymous"):
        build_app({"data_dir": str(tmp_path)})
    with pytest.raises(InvalidRequestError, match="pool"):
        build_app({"data_dir": str(tmp_path), "allow_anonymous": True, "pool": []})


class Deployment:
    """An application that is deployed again and again."""

    def __init__(self, folder: Path, address: str, environ: dict[str, str]) -> None:
        self.server = Server(folder, folder)
        self._address, self._environ = address, environ

    def deploy(self, pools: list[dict[str, Any]]) -> None:
        folder = self.server.folder
        (folder / "data").mkdir(exist_ok=True)
        application = {
            "name": "live-avatar",
            "route_prefix": "/",
            "import_path": "serve_app.app:build_app",
            "args": {"data_dir": str(folder / "data"), "allow_anonymous": True, "pools": pools},
        }
        http = {"host": "127.0.0.1", "port": self.server.port}
        config = {"proxy_location": "HeadOnly", "http_options": http, "applications": [application]}
        (folder / "app.yaml").write_text(yaml.safe_dump(config))
        command = [BIN / "serve", "deploy", "-a", self._address, str(folder / "app.yaml")]
        done = subprocess.run(command, env=self._environ, capture_output=True, text=True, timeout=READY_S)
        assert done.returncode == 0, done.stderr

    def groups(self) -> dict[str, str]:
        """Returns the condition of every group; nothing while the service does not answer."""
        with suppress(httpx2.HTTPError, ValueError, KeyError):
            pools = self.server.client.get("/v1/capacity").json()["pools"]
            return {group["name"]: group["condition"] for pool in pools for group in pool["groups"]}
        return {}

    def until_groups(self, is_so: Any) -> dict[str, str]:
        deadline = time.monotonic() + READY_S
        while not is_so(groups := self.groups()):
            assert time.monotonic() < deadline, groups
            time.sleep(0.1)
        return groups


def check_metrics(url: str) -> None:
    """Waits until every metric of the service is exported; Ray sends them every few seconds."""
    wanted = {f"ray_{metric}" for metric in Metric} - {f"ray_{Metric.GROUP_RESTARTS}"}
    deadline, names = time.monotonic() + READY_S, set[str]()
    while not wanted <= names:
        assert time.monotonic() < deadline, wanted - names
        lines = httpx2.get(url, timeout=ANSWER_S).text.splitlines()
        names = {re.sub(r"(_bucket|_sum|_count)?[{ ].*", "", line) for line in lines if line.startswith("ray_avatar")}


@pytest.mark.chaos
def test_redeploying_and_scaling_down_lose_nothing(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> None:
    folder = tmp_path_factory.mktemp("r")
    environ = {**environment(cache), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    pool = {"name": "tiny", "model": "live-avatar-tiny", "leader_cpus": 0.1, "cpus_per_rank": 0.5}
    with ray_head(folder, environ) as head:
        deployment = Deployment(folder, head.address, environ)
        server = deployment.server
        deployment.deploy([{**pool, "min_groups": 2, "max_groups": 2}])
        before = deployment.until_groups(lambda groups: list(groups.values()) == ["ready"] * 2)
        server.ended(server.create()["id"])
        check_metrics(head.metrics)
        videos = [server.create(seconds=LONG_S) for _ in range(2)] + [server.create()]
        for video in videos[:2]:
            server.until(video["id"], lambda now: now["progress"] >= 2)
        deployment.deploy([{**pool, "min_groups": 1, "max_groups": 1}])
        deployment.until_groups(lambda groups: "draining" in groups.values() or groups.keys() - before.keys())
        assert "in_progress" in [server.video(video["id"])["status"] for video in videos[:2]]
        ended = [server.ended(video["id"]) for video in videos]
        assert [video["status"] for video in ended] == ["completed"] * 3
        deployment.until_groups(lambda groups: list(groups.values()) == ["ready"] and not groups.keys() & before.keys())
    reader = JobReader.open(folder / "data" / "jobs.sqlite3")
    assert [reader.get(video["id"]).attempt for video in videos] == [1, 1, 1]
    reader.close()
