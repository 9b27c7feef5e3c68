"""Buckets behind networks and servers that fail: what arrives is whole, or an error, in bounded time."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.storage.s3 import Patience, S3Folder
from tests.storage.conftest import CONTENT, PART_BYTES, PATIENCE, TIMEOUT_S, refusal
from tests.storage.faulty_proxy import Fault, FaultyProxy
from tests.storage.s3_servers import S3Server

HASTE = Patience(attempts=8, connect_s=5.0, read_s=0.5)
PASSING = [
    Fault("status", "POST", "uploads", status=500),
    Fault("status", "PUT", "partNumber=2", times=2),
    Fault("status", "PUT", "partNumber=1", status=429),
    Fault("reset", "PUT", "partNumber=1"),
    Fault("lost", "PUT", "partNumber=2"),
    Fault("silent", "POST", "uploadId"),
    Fault("reset", "POST", "uploadId"),
]


@pytest.fixture
def folder(proxied: S3Folder) -> S3Folder:
    """These folders are behind the proxy."""
    return proxied


def folder_for(bucket: str, fault: Fault) -> S3Folder:
    """Returns a folder that soon has enough of a server that is silent."""
    return S3Folder(bucket, "out", part_bytes=PART_BYTES, patience=HASTE if fault.kind == "silent" else PATIENCE)


def named(fault: Fault) -> str:
    return f"{fault.kind} {fault.method} {fault.part} {fault.times}"


@pytest.mark.parametrize("fault", PASSING, ids=named)
def test_a_put_survives_what_passes(
    server: S3Server, bucket: str, proxy: FaultyProxy, source: Path, fault: Fault
) -> None:
    proxy.faults = [replace(fault)]
    folder_for(bucket, fault).put(source, "a.mp4")
    assert proxy.faults[0].times == 0
    assert server.objects(bucket) == {"out/a.mp4": CONTENT}
    assert server.uploads(bucket) == []


@pytest.mark.parametrize("server", ["rclone"], indirect=True)
def test_a_put_whose_last_answer_is_lost_is_done_again(
    server: S3Server, bucket: str, proxy: FaultyProxy, folder: S3Folder, source: Path
) -> None:
    proxy.faults = [Fault("lost", "POST", "uploadId")]
    folder.put(source, "a.mp4")
    assert server.objects(bucket) == {"out/a.mp4": CONTENT}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("status", "PUT", "partNumber=2", times=99), "the server answers Injected (503) to UploadPart"),
        (Fault("status", "POST", "uploads", times=99), "the server answers Injected (503) to CreateMultipartUpload"),
        (Fault("reset", "PUT", "partNumber=1", times=99), "does not answer (ConnectionClosedError)"),
    ],
    ids=lambda value: named(value) if isinstance(value, Fault) else "",
)
def test_a_put_that_fails_leaves_the_earlier_file_and_no_parts(
    server: S3Server,
    bucket: str,
    proxy: FaultyProxy,
    folder: S3Folder,
    source: Path,
    fault: Fault,
    reason: str,
) -> None:
    folder.write("a.mp4", b"earlier")
    proxy.faults = [replace(fault)]
    assert reason in refusal(lambda: folder.put(source, "a.mp4"))
    assert server.objects(bucket) == {"out/a.mp4": b"earlier"}
    assert server.uploads(bucket) == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", "GET", times=3),
        Fault("silent", "GET"),
        Fault("status", "GET", times=2),
        Fault("reset", "GET", times=2),
        Fault("lost", "GET"),
    ],
    ids=named,
)
def test_what_is_read_is_whole_whatever_passes(
    server: S3Server, bucket: str, proxy: FaultyProxy, tmp_path: Path, fault: Fault
) -> None:
    folder = folder_for(bucket, fault)
    server.client().put_object(Bucket=bucket, Key="out/a", Body=CONTENT)
    proxy.faults = [replace(fault)]
    folder.fetch("a", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == CONTENT
    proxy.faults = [replace(fault)]
    found = folder.read("a")
    assert found is not None
    assert found.content == CONTENT
    proxy.faults = [replace(fault)]
    with folder.open("a") as file:
        assert b"".join(iter(lambda: file.read(2_000_000), b"")) == CONTENT


def test_a_fetch_that_breaks_off_goes_on_where_it_was(
    bucket: str, proxy: FaultyProxy, folder: S3Folder, source: Path, tmp_path: Path
) -> None:
    folder.put(source, "a")
    proxy.requests.clear()
    proxy.faults = [Fault("cut", "GET", times=2)]
    folder.fetch("a", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == CONTENT
    first, *others = proxy.requests
    assert first == f"GET /{bucket}/out/a"
    begins = [int(request.removeprefix(f"{first} bytes=").removesuffix(f"-{len(CONTENT) - 1}")) for request in others]
    assert [round(begin / len(CONTENT), 1) for begin in begins] == [0.5, 0.7]


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_server_without_ranges_is_told(proxy: FaultyProxy, folder: S3Folder, source: Path, tmp_path: Path) -> None:
    folder.put(source, "a")
    proxy.faults = [Fault("cut", "GET"), Fault("whole", "GET", times=2)]
    assert "the server does not know ranges" in refusal(lambda: folder.fetch("a", tmp_path / "target"))
    with folder.open("a") as file:
        assert "the server does not know ranges" in refusal(lambda: file.read(10))


@pytest.mark.parametrize("kind", ["cut", "status", "reset"])
def test_a_fetch_that_fails_leaves_the_earlier_file_alone(
    proxy: FaultyProxy, folder: S3Folder, tmp_path: Path, kind: Any
) -> None:
    folder.write("a", CONTENT[:1000])
    (tmp_path / "target").write_bytes(b"earlier")
    proxy.faults = [Fault(kind, "GET", times=99)]
    assert folder.uri("a") in refusal(lambda: folder.fetch("a", tmp_path / "target"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"target": b"earlier"}


@pytest.mark.parametrize("num_bytes", [0, 100, len(CONTENT)])
def test_a_file_that_changes_while_it_is_read_is_an_error(folder: S3Folder, source: Path, num_bytes: int) -> None:
    folder.put(source, "a")
    with folder.open("a") as file:
        assert file.read(10) == CONTENT[:10]
        folder.write("a", b"x" * num_bytes)
        file.seek(-10, os.SEEK_END)
        assert f'"{folder.uri("a")}" was replaced while it was read' in refusal(file.read)


def test_a_fetch_does_not_join_two_files(
    server: S3Server, bucket: str, proxy: FaultyProxy, folder: S3Folder, source: Path, tmp_path: Path
) -> None:
    folder.put(source, "a")
    proxy.faults = [Fault("cut", "GET"), Fault("held", "GET")]
    with ThreadPoolExecutor(1) as threads:
        fetching = threads.submit(folder.fetch, "a", tmp_path / "target")
        assert proxy.faults[1].met.wait(TIMEOUT_S)
        server.client().put_object(Bucket=bucket, Key="out/a", Body=b"x" * len(CONTENT))
        proxy.faults[1].released.set()
        assert f'"{folder.uri("a")}" was replaced while it was read' in refusal(fetching.result)
    assert not (tmp_path / "target").exists()
