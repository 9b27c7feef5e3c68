"""Buckets: servers that refuse or ignore; writers that are killed; secrets that stay secret."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import InputNotFoundError, StorageError
from serve_app.storage.folders import open_folder
from serve_app.storage.s3 import S3Folder
from tests.storage.conftest import CONTENT, PART_BYTES, PATIENCE, TIMEOUT_S, refusal
from tests.storage.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.storage.s3_servers import KEY, SECRET, S3Server, use

ROOT = Path(__file__).parents[2]
TOKEN, PASSWORD = "t0ken+of/nobody==", "pa55word"
PUT = """
import sys
from pathlib import Path
from serve_app.storage.s3 import S3Folder
S3Folder(sys.argv[1], "out", part_bytes=int(sys.argv[2])).put(Path(sys.argv[3]), "row1/a.mp4")
"""


@pytest.fixture
def folder(proxied: S3Folder) -> S3Folder:
    """These folders are behind the proxy."""
    return proxied


def test_clean_removes_the_parts_of_a_killed_writer(
    server: S3Server, bucket: str, proxy: FaultyProxy, folder: S3Folder, source: Path
) -> None:
    proxy.faults = [Fault("held", "PUT", "partNumber=2")]
    command = [sys.executable, "-c", PUT, bucket, str(PART_BYTES), str(source)]
    with subprocess.Popen(command, cwd=ROOT) as writer:
        assert proxy.faults[0].met.wait(TIMEOUT_S)
        writer.kill()
    assert server.uploads(bucket) == ["out/row1/a.mp4"]
    assert server.objects(bucket) == {}
    assert folder.clean("row2/") == 0
    assert folder.clean("row1/") == 1
    assert server.uploads(bucket) == []
    assert folder.clean() == 0


@pytest.mark.parametrize("server", ["rclone"], indirect=True)
def test_a_writer_whose_parts_are_cleaned_starts_again(
    server: S3Server, bucket: str, proxy: FaultyProxy, folder: S3Folder, source: Path
) -> None:
    held = Fault("held", "PUT", "partNumber=2")
    proxy.faults = [held]
    patient = S3Folder(bucket, "out", part_bytes=PART_BYTES)
    with ThreadPoolExecutor(1) as threads:
        putting = threads.submit(patient.put, source, "a.mp4")
        assert held.met.wait(TIMEOUT_S)
        assert folder.clean() == 1
        held.released.set()
        putting.result(TIMEOUT_S)
    assert server.objects(bucket) == {"out/a.mp4": CONTENT}
    assert server.uploads(bucket) == []


@pytest.mark.parametrize("server", ["moto"], indirect=True)
@pytest.mark.parametrize(
    "fault",
    [Fault("lost", "PUT"), Fault("status", "PUT", status=503), Fault("status", "PUT", status=409)],
    ids=lambda fault: fault.kind,
)
def test_write_if_knows_its_own_success_whatever_passes(proxy: FaultyProxy, folder: S3Folder, fault: Fault) -> None:
    proxy.faults = [replace(fault)]
    assert folder.write_if("a", b"mine", replaces=None)
    version = folder.stat("a").version
    proxy.faults = [replace(fault)]
    assert folder.write_if("a", b"mine again", replaces=version)
    assert not folder.write_if("a", b"others", replaces=None)


def test_write_if_works_on_servers_that_refuse_conditions(proxy: FaultyProxy, folder: S3Folder) -> None:
    proxy.faults = [Fault("status", "PUT", status=501)]
    assert folder.write_if("a", b"one", replaces=None)
    assert not folder.write_if("a", b"two", replaces=None)


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_write_if_closes_the_gap_behind_its_question(
    server: S3Server, bucket: str, proxy: FaultyProxy, folder: S3Folder
) -> None:
    proxy.faults = [Fault("held", "PUT")]
    patient = S3Folder(bucket, "out")
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(patient.write_if, "a", b"late", replaces=None)
        assert proxy.faults[0].met.wait(TIMEOUT_S)
        server.client().put_object(Bucket=bucket, Key="out/a", Body=b"first")
        proxy.faults[0].released.set()
        assert not writing.result(TIMEOUT_S)
    assert server.objects(bucket) == {"out/a": b"first"}
    assert folder.read("a") is not None


def test_long_lists_come_page_by_page(proxy: FaultyProxy, folder: S3Folder) -> None:
    client = folder._client

    def few(params: dict[str, Any], **_: object) -> None:
        params["MaxKeys"] = 2

    written = [f"a{number}" for number in range(5)]
    for name in written:
        folder.write(name, name.encode())
    proxy.requests.clear()
    client.meta.events.register("provide-client-params.s3.ListObjectsV2", few)
    try:
        assert [found.name for found in folder.list()] == written
    finally:
        client.meta.events.unregister("provide-client-params.s3.ListObjectsV2", few)
    assert len(proxy.requests) == 3


def test_a_list_that_is_not_deep_asks_for_nothing_below(proxy: FaultyProxy, folder: S3Folder) -> None:
    client = folder._client

    def few(params: dict[str, Any], **_: object) -> None:
        params["MaxKeys"] = 2

    for name in ("a", *(f"below/{number}" for number in range(9))):
        folder.write(name, b"")
    proxy.requests.clear()
    client.meta.events.register("provide-client-params.s3.ListObjectsV2", few)
    try:
        assert [found.name for found in folder.list(is_deep=False)] == ["a"]
    finally:
        client.meta.events.unregister("provide-client-params.s3.ListObjectsV2", few)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_what_no_name_can_say_is_not_listed(server: S3Server, bucket: str, folder: S3Folder) -> None:
    for key in ("out/", "out/a/", "out//b", "out/../c", "outside", "out/d"):
        server.client().put_object(Bucket=bucket, Key=key, Body=b"")
    assert [found.name for found in folder.list()] == ["d"]


def test_a_missing_bucket_is_told_from_a_missing_file(server: S3Server, tmp_path: Path) -> None:
    folder = open_folder(f"s3://missing-behind-{len(server.url)}/out")
    reads: list[Callable[[], object]] = [
        lambda: folder.read("a"),
        lambda: folder.fetch("a", tmp_path / "target"),
        lambda: list(folder.list()),
    ]
    for read in reads:
        with pytest.raises(InputNotFoundError, match="there is no bucket for"):
            read()
    with pytest.raises(InputNotFoundError):
        folder.open("a")
    told = refusal(lambda: folder.write("a", b"x"))
    assert told == f'there is no bucket for "{folder.uri("a")}"; make the bucket, or correct its name'


@pytest.mark.parametrize("server", ["rclone"], indirect=True)
@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wr0ng/secret"}, "SignatureDoesNotMatch (403)"),
        ({"AWS_ACCESS_KEY_ID": "AKWRONGKEY"}, "InvalidAccessKeyId (403)"),
    ],
)
def test_wrong_credentials_are_refused_and_not_told(
    server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], code: str
) -> None:
    use(server, monkeypatch, **variables)
    folder = S3Folder(bucket, patience=PATIENCE)
    told = refusal(lambda: folder.write("a", b"x"))
    assert told.startswith(f'"s3://{bucket}/a": the server answers {code} to PutObject; check what boto3 reads: ')
    assert "AWS_SECRET_ACCESS_KEY" in told
    assert not [secret for secret in variables.values() if secret in told]
    assert "s3:GetObject and s3:ListBucket" in refusal(lambda: folder.stat("a"))  # HEAD tells 403, and no code


def test_no_credentials_are_told(server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(server, monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    told = refusal(lambda: S3Folder(bucket).read("a"))
    assert told.startswith(f'"s3://{bucket}/a": there are no credentials (NoCredentialsError); check what boto3 reads')


def test_an_endpoint_that_does_not_answer_is_told_without_its_password(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_proxy(moto.url) as gone:
        port = gone.server_port
    use(moto, monkeypatch, AWS_ENDPOINT_URL=f"http://user:{PASSWORD}@127.0.0.1:{port}")
    told = refusal(lambda: S3Folder("bucket", patience=replace(PATIENCE, attempts=1)).read("a"))
    assert told == (
        f'"s3://bucket/a": http://127.0.0.1:{port} does not answer (EndpointConnectionError); '
        "check AWS_ENDPOINT_URL and the network"
    )


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AWS_ENDPOINT_URL": "localhost:9000"}, "the AWS settings are of no use (ValueError)"),
        ({"AWS_PROFILE": "nobody"}, "the AWS settings are of no use: The config profile (nobody) could not be found"),
    ],
)
def test_settings_that_are_of_no_use_are_told(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: str
) -> None:
    use(moto, monkeypatch, **variables)
    assert words in refusal(lambda: open_folder("s3://bucket"))


@pytest.mark.parametrize("server", ["rclone"], indirect=True)
def test_a_profile_names_endpoint_and_credentials(
    server: S3Server, bucket: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"[profile lab]\nendpoint_url = {proxy.url.replace('127.0.0.1', 'localhost')}\nregion = us-east-1\n"
        f"aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    use(server, monkeypatch, AWS_CONFIG_FILE=str(config), AWS_PROFILE="lab")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    open_folder(f"s3://{bucket}/a").write("b", b"x")
    assert server.objects(bucket) == {"a/b": b"x"}
    assert proxy.requests == [f"PUT /{bucket}/a/b"]


@pytest.mark.parametrize(
    ("endpoint", "setting", "expected"),
    [
        ("http://localhost:9", "", {"addressing_style": "path"}),
        ("http://localhost:9", "s3 =\n  addressing_style = virtual\n", {"addressing_style": "virtual"}),
        ("https://s3.eu-central-1.amazonaws.com", "", None),
    ],
)
def test_a_bucket_is_part_of_the_path_on_servers_of_ones_own_unless_the_profile_says_otherwise(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str, setting: str, expected: object
) -> None:
    (tmp_path / "config").write_text(f"[default]\n{setting}")
    use(moto, monkeypatch, AWS_ENDPOINT_URL=endpoint, AWS_CONFIG_FILE=str(tmp_path / "config"))
    assert S3Folder("bucket")._client.meta.config.s3 == expected


def test_nothing_secret_is_logged_or_shown(
    server: S3Server,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    source: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="botocore")
    use(server, monkeypatch, AWS_SESSION_TOKEN=TOKEN)
    folder = S3Folder(bucket, "out", part_bytes=PART_BYTES, patience=PATIENCE)
    logging.getLogger("test").debug("a word of the test itself")
    folder.put(source, "a")
    folder.read("missing")
    with folder.open("a") as file:
        file.read(10)
    use(server, monkeypatch, AWS_SESSION_TOKEN=TOKEN, AWS_ENDPOINT_URL=f"http://user:{PASSWORD}@127.0.0.1:1")
    with pytest.raises(StorageError) as refused:
        S3Folder(bucket, patience=PATIENCE).read("a")
    logging.getLogger("test").error("failed", exc_info=refused.value)
    told = f"{caplog.text} {folder!r} {folder.__dict__} {refused.value!r}"
    assert "a word of the test itself" in told
    assert not [secret for secret in (KEY, SECRET, TOKEN, PASSWORD, "Signature=", "Credential=") if secret in told]
