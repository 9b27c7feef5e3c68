"""A job whose manifest, inputs and output are in a bucket, through a network that fails, killed and continued."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.bulk_jobs.conftest import job
from tests.bulk_jobs.manifests import good_row
from tests.storage.conftest import moto, rclone
from tests.storage.faulty_proxy import Fault, faulty_proxy
from tests.storage.s3_servers import SECRET, S3Server

__all__ = ["moto", "rclone"]

COUNT = 8


def upload(server: S3Server, bucket: str, folder: Path) -> None:
    client = server.client()
    client.create_bucket(Bucket=bucket)
    for path in (*folder.glob("*.png"), *folder.glob("*.wav")):
        client.upload_file(str(path), bucket, f"in/{path.name}")
    rows = [json.dumps(good_row(number)) for number in range(COUNT)]
    lines = "\n".join([*rows, json.dumps(good_row(COUNT, image="nowhere.png"))])
    client.put_object(Bucket=bucket, Key="in/manifest.jsonl", Body=lines.encode())


def keys(server: S3Server, bucket: str, prefix: str) -> dict[str, str]:
    """Returns the names below a prefix, and what tells one content from another."""
    found = server.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {one["Key"].removeprefix(prefix): one["ETag"] for page in found for one in page.get("Contents", ())}


def unfinished(server: S3Server, bucket: str) -> list[str]:
    """Returns the keys of uploads that were begun and not ended; rclone says that there are none by an error."""
    try:
        return server.uploads(bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchUpload":
            raise
        return []


def read(server: S3Server, bucket: str, key: str) -> bytes:
    return bytes(server.client().get_object(Bucket=bucket, Key=key)["Body"].read())


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_a_bucket_holds_everything_and_nothing_is_made_twice(
    kind: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    server: S3Server = request.getfixturevalue(kind)
    bucket = f"bulk-{uuid.uuid4().hex[:8]}"
    upload(server, bucket, folder)
    manifest, out = f"s3://{bucket}/in/manifest.jsonl", f"s3://{bucket}/out"
    with faulty_proxy(server.url) as proxy:
        faults = [Fault("status", "PUT", "/out/", 2, status=500), Fault("cut", "GET", "/in/voice_1", 1)]
        proxy.faults += [*faults, Fault("reset", "PUT", "/result.json", 2), Fault("lost", "PUT", "/video.mp4", 2)]
        env = {**server.environment(), "AWS_ENDPOINT_URL": proxy.url}
        with job(folder, None, manifest, out=out, groups=2, env=env) as first:
            first.has_done(COUNT // 2)
            first.process.kill()
        before = {name: tag for name, tag in keys(server, bucket, "out/").items() if name.endswith("result.json")}
        with job(folder, None, manifest, out=out, groups=2, env=env) as second:
            code, summary = second.end()
    assert (code, summary["rows"]["done"] + summary["rows"]["skipped"], summary["rows"]["failed"]) == (3, COUNT, 1)
    assert summary["rows"]["skipped"] >= COUNT // 2
    there = keys(server, bucket, "out/")
    assert {name: there[name] for name in before} == before
    assert {f"row-{number:03}/video.mp4" for number in range(COUNT)} <= set(there)
    assert unfinished(server, bucket) == []
    assert not any(fault.times for fault in proxy.faults)
    check_reports(server, bucket, folder)


def check_reports(server: S3Server, bucket: str, folder: Path) -> None:
    output = [json.loads(line) for line in read(server, bucket, "out/output.jsonl").splitlines()]
    assert {line["custom_id"] for line in output} == {f"row-{number:03}" for number in range(COUNT)}
    assert all(line["uri"] == f"s3://{bucket}/out/{line['custom_id']}/video.mp4" for line in output)
    (error,) = [json.loads(line) for line in read(server, bucket, "out/errors.jsonl").splitlines()]
    assert (error["error"]["code"], error["base"]) == ("INPUT_MISSING", f"s3://{bucket}/in")
    assert json.loads(read(server, bucket, "out/summary.json"))["state"] == "partial"
    everything = b"".join(read(server, bucket, f"out/{name}") for name in keys(server, bucket, "out/"))
    assert SECRET.encode() not in everything + (folder / "driver.log").read_bytes()
