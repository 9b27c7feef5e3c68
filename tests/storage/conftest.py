"""Places of files: a folder, and a bucket of each server."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_app.errors import StorageError
from serve_app.storage.base import Folder
from serve_app.storage.local_folder import LocalFolder
from serve_app.storage.s3 import Patience, S3Folder
from tests.storage.faulty_proxy import FaultyProxy, faulty_proxy
from tests.storage.s3_servers import S3Server, moto_server, rclone_server, use

PART_BYTES = 5 << 20
"""The least that S3 allows."""
CONTENT = random.Random(3).randbytes(PART_BYTES + 1234)
PATIENCE = Patience(attempts=3, connect_s=5.0, read_s=10.0)
TIMEOUT_S = 60
BOUND_S = 30.0
"""No call may fail later, whatever the server does: some requests, and what is between them."""


def refusal(call: Callable[[], object]) -> str:
    """Returns what is said, in bounded time, where a place does not answer or refuses."""
    began = time.monotonic()
    with pytest.raises(StorageError) as refused:
        call()
    assert time.monotonic() - began < BOUND_S
    return str(refused.value)


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_proxy(moto: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(moto.url) as found:
        yield found


@pytest.fixture(scope="session")
def rclone_proxy(rclone: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(rclone.url) as found:
        yield found


@pytest.fixture(params=["moto", "rclone"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Each of the servers, which the environment names."""
    found: S3Server = request.getfixturevalue(request.param)
    use(found, monkeypatch)
    return found


@pytest.fixture
def proxy(server: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FaultyProxy:
    """A proxy before each of the servers, which the environment names; nobody waits long before asking again."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    found: FaultyProxy = request.getfixturevalue("moto_proxy" if server.keeps_conditions else "rclone_proxy")
    found.renew()
    use(server, monkeypatch, AWS_ENDPOINT_URL=found.url)
    return found


@pytest.fixture
def bucket(server: S3Server) -> str:
    """A new bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["local", "moto", "rclone"])
def folder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Folder:
    """An empty folder of each kind."""
    if request.param == "local":
        return LocalFolder(tmp_path / "folder")
    server: S3Server = request.getfixturevalue(request.param)
    use(server, monkeypatch)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=name)
    return S3Folder(name, "some/prefix", part_bytes=PART_BYTES)


@pytest.fixture
def proxied(proxy: FaultyProxy, bucket: str) -> S3Folder:
    """An empty folder behind the proxy."""
    assert os.environ["AWS_ENDPOINT_URL"] == proxy.url
    return S3Folder(bucket, "out", part_bytes=PART_BYTES, patience=PATIENCE)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of two parts."""
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path
