"""Two servers that speak as S3 does, each a process of its own on a free port: moto's and rclone's."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3.session
import pytest

KEY, SECRET = "AKTESTKEYOFNOBODY", "s3cr3t/of/nobody"
START_S = 60.0
_URL = re.compile(r"http://127\.0\.0\.1:\d+")
_SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True)
class S3Server:
    """A server that runs. moto keeps to conditions and lets everybody in; rclone does the opposite."""

    url: str
    keeps_conditions: bool
    checks_signatures: bool

    def environment(self) -> dict[str, str]:
        """Returns what a process needs to reach it, the usual way."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """Returns a plain client, to look behind the folder's back."""
        return _plain_client(self.url)

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Returns all that is in a bucket."""
        found = self.client().list_objects_v2(Bucket=bucket).get("Contents", ())
        return {one["Key"]: self.client().get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in found}

    def uploads(self, bucket: str) -> list[str]:
        """Returns the keys of multipart uploads that are neither complete nor aborted."""
        try:
            found = self.client().list_multipart_uploads(Bucket=bucket)
        except self.client().exceptions.NoSuchUpload:  # rclone, when there never was one
            return []
        return [upload["Key"] for upload in found.get("Uploads", ())]


@functools.cache
def _plain_client(url: str) -> Any:
    session = boto3.session.Session(KEY, SECRET, region_name="us-east-1")
    return session.client("s3", endpoint_url=url)


@contextmanager
def moto_server(folder: Path) -> Iterator[S3Server]:
    """Starts moto's server, which keeps everything in memory."""
    command = [str(_SCRIPTS / "moto_server"), "-H", "127.0.0.1", "-p", "0"]
    with _running(command, log=folder / "moto.log") as url:
        yield S3Server(url, keeps_conditions=True, checks_signatures=False)


@contextmanager
def rclone_server(folder: Path) -> Iterator[S3Server]:
    """Starts `rclone serve s3` on a new folder below `folder`."""
    (folder / "buckets").mkdir()
    command = [str(_SCRIPTS / "rclone"), "serve", "s3", str(folder / "buckets"), "--addr", "127.0.0.1:0"]
    command += ["--auth-key", f"{KEY},{SECRET}", "--config", str(folder / "rclone.conf")]
    with _running(command, log=folder / "rclone.log") as url:
        yield S3Server(url, keeps_conditions=False, checks_signatures=True)


def use(server: S3Server, monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Lets this process reach a server; `variables` replace what it needs for that."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**server.environment(), **variables}.items():
        monkeypatch.setenv(name, value)


@contextmanager
def _running(command: list[str], *, log: Path) -> Iterator[str]:
    """Runs a server in a process group of its own; yields the URL that it tells in its log."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield _told_url(process, log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _told_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := _URL.search(log.read_text()):
            return found[0]
        time.sleep(0.02)
    raise AssertionError(log.read_text())
