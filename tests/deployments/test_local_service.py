"""What keeps a service on this machine from starting is told before anything is started."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_app.deployments.dispatcher import STORE_NAME
from serve_app.errors import AvatarError, InvalidRequestError, OutputError, UnavailableError
from serve_app.jobs.errors import StoreError
from serve_app.local_service import local_service, num_cpus, wait_for_groups
from serve_app.schemas.service import PoolConfig, ServiceConfig

HOLD = "import sys, time; from pathlib import Path; from serve_app.local_service import _alone_in\n"
HOLD += "lock = _alone_in(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def config(folder: Path, **changes: Any) -> ServiceConfig:
    pool = PoolConfig(name="tiny", model="live-avatar-tiny", **changes)
    return ServiceConfig(data_dir=folder, pools=(pool,), allow_anonymous=True)


def refusal(settings: ServiceConfig) -> AvatarError:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with pytest.raises(AvatarError) as refused, local_service(settings, host="127.0.0.1", port=port):
        raise AssertionError("it started")
    return refused.value


def test_a_second_service_in_the_same_folder_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        refused = refusal(config(tmp_path))
        assert isinstance(refused, InvalidRequestError)
        assert f'another service works in "{tmp_path}"' in str(refused)
        first.kill()
    (tmp_path / STORE_NAME).write_text("this is no database " * 1000)
    assert isinstance(refusal(config(tmp_path)), StoreError)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = refusal(config(tmp_path / "file" / "data"))
    assert isinstance(refused, OutputError)
    assert str(tmp_path / "file" / "data") in str(refused)


@pytest.mark.parametrize("changes", [{"node_resource": "h100"}, {}])
def test_resources_of_a_cluster_are_refused_on_one_machine(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = config(tmp_path, **changes)
    refused = refusal(settings if changes else settings.model_copy(update={"control_resource": "head"}))
    assert refused.param == "pools"
    assert "this is one machine" in str(refused)


def test_there_is_a_place_for_every_group_whatever_it_wants(tmp_path: Path) -> None:
    wide = config(tmp_path, layout="stages=2,vae=1", cpus_per_rank=16, leader_cpus=4, max_groups=3)
    assert num_cpus(wide) > 3 * (3 * 16 + 4)


@contextmanager
def answering(*groups: dict[str, str]) -> Iterator[str]:
    """A server that has these groups."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"pools": [{"groups": groups}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Tells nobody."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def group(condition: str, reason: str = "") -> dict[str, str]:
    return {"name": f"a-{condition}", "condition": condition, "reason": reason}


def test_groups_that_have_all_failed_are_not_waited_for_and_say_why() -> None:
    started = time.monotonic()
    told = pytest.raises(UnavailableError, match="no such checkpoint")
    with answering(group("failed", "no such checkpoint")) as url, told:
        wait_for_groups(url, timeout_s=60, is_cancelled=lambda: False)
    assert time.monotonic() - started < 10


def test_one_group_is_enough_and_a_start_is_waited_for_until_it_is_cancelled_or_late() -> None:
    with answering(group("failed"), group("ready")) as url:
        assert wait_for_groups(url, timeout_s=60, is_cancelled=lambda: False)
    with answering(group("failed"), group("starting")) as url:
        assert not wait_for_groups(url, timeout_s=60, is_cancelled=lambda: True)
        with pytest.raises(UnavailableError, match=r"after 0\.5 s: a-failed is failed, a-starting is starting"):
            wait_for_groups(url, timeout_s=0.5, is_cancelled=lambda: False)
