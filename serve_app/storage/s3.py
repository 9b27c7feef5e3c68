"""A prefix in a bucket of S3, or of a server that speaks as S3 does, as a place for files.

Endpoint, region and credentials are what boto3 finds by itself: AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_PROFILE,
keys, the machine's role. This module and its two helpers (s3_reading, s3_errors) alone import boto3 and what belongs
to it.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.manager import TransferConfig, TransferManager

from serve_app.errors import InputNotFoundError
from serve_app.storage import disk
from serve_app.storage.base import Listed, Stored, checked_name, checked_prefix, is_name
from serve_app.storage.s3_errors import (
    BucketNotFoundError,
    code_of,
    is_missing,
    no_settings,
    status_of,
    told,
    was_repeated,
)
from serve_app.storage.s3_reading import READ_AHEAD_BYTES, Download, ObjectFile, S3Object, version_of

PART_BYTES = 16 << 20
_COPY_PART_BYTES = 1 << 30
_COPY_AT_ONCE_BYTES = 5 * _COPY_PART_BYTES
"""Larger objects the servers copy in parts only."""
_CONNECTIONS = 32
_PARTS_AT_ONCE = 4
_PAUSE_S = 0.2
_CONFLICT, _PRECONDITION_FAILED, _NOT_IMPLEMENTED = 409, 412, 501


@dataclass(frozen=True)
class Patience:
    """How often a request is sent to a server that fails, and how long each time it may be silent."""

    attempts: int = 6
    connect_s: float = 5.0
    read_s: float = 60.0


PATIENCE = Patience()
_COPIES = TransferConfig(multipart_threshold=_COPY_AT_ONCE_BYTES, multipart_chunksize=_COPY_PART_BYTES)


class S3Folder:
    """A Folder in a bucket. Versions are ETags. Threads may share it."""

    def __init__(
        self, bucket: str, prefix: str = "", *, part_bytes: int = PART_BYTES, patience: Patience = PATIENCE
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._patience = patience
        self._client = _client(patience, _aws_environment())
        self._transfer = TransferConfig(
            multipart_threshold=part_bytes, multipart_chunksize=part_bytes, max_request_concurrency=_PARTS_AT_ONCE
        )

    def __repr__(self) -> str:
        return f"S3Folder({self.uri()!r})"

    def uri(self, name: str = "") -> str:
        return f"s3://{self._bucket}/{self._key(name) if name else self._prefix}".removesuffix("/")

    def read(self, name: str) -> Stored | None:
        download = Download(self._object(name))
        try:
            content = b"".join(download)
        except BucketNotFoundError:
            raise
        except InputNotFoundError:
            return None
        return Stored(content, download.version)

    def write(self, name: str, content: bytes) -> None:
        with self._told(name):
            self._client.put_object(**self._place(name), Body=content)

    def write_if(self, name: str, content: bytes, *, replaces: str | None) -> bool:
        """See Folder. A server that ignores the condition cannot be told from one that found it fulfilled.

        So every server is asked what is there first; those that keep to the condition close the gap.
        """
        with self._told(name):
            if self._version(name) != replaces:
                return False
            condition = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": f'"{replaces}"'}
            return self._write_on(condition, name, content)

    def put(self, path: Path, name: str) -> None:
        with disk.told_reading(path), self._told(name):
            for attempts_left in reversed(range(self._patience.attempts)):
                try:
                    self._upload(path, name)
                    return
                except ClientError as error:  # somebody cleaned, or the answer to the upload's last request was lost
                    if code_of(error) != "NoSuchUpload" or not attempts_left:
                        raise

    def copy(self, name: str, to: str) -> None:
        with self._told(name, reads=True):
            if self._key(name) == self._key(to):  # servers refuse that
                self.stat(name)
                return
            with TransferManager(self._client, _COPIES) as transfers:
                transfers.copy(self._place(name), self._bucket, self._key(to)).result()

    def fetch(self, name: str, path: Path) -> None:
        pieces = iter(Download(self._object(name)))
        with disk.told_writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with disk.unfinished_in(path.parent) as part:
                for piece in pieces:
                    part.append(piece)
                part.become(path)

    def open(self, name: str) -> BinaryIO:
        return io.BufferedReader(ObjectFile(self._object(name), self.stat(name)), READ_AHEAD_BYTES)

    def stat(self, name: str) -> Listed:
        with self._told(name, reads=True):
            found = self._client.head_object(**self._place(name))
            return Listed(name, int(found["ContentLength"]), version_of(found))

    def list(self, prefix: str = "", *, is_deep: bool = True) -> Iterator[Listed]:
        pages = self._client.get_paginator("list_objects_v2")
        wanted = {"Bucket": self._bucket, "Prefix": self._prefix + checked_prefix(prefix)}
        if not is_deep:
            wanted["Delimiter"] = "/"
        with self._told(reads=True):
            for page in pages.paginate(**wanted):
                for found in page.get("Contents", ()):
                    name = found["Key"].removeprefix(self._prefix)
                    if is_name(name):
                        yield Listed(name, int(found["Size"]), version_of(found))

    def delete(self, name: str) -> None:
        with self._told(name):
            self._client.delete_object(**self._place(name))

    def clean(self, prefix: str = "") -> int:
        """See Folder. An upload does not tell whether its writer is alive: all end, and `put` starts again."""
        count = 0
        with self._told():
            for key, upload_id in self._uploads(checked_prefix(prefix)):
                with _no_upload_is_fine():  # it is finished, or somebody else cleans too
                    self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)
                    count += 1
        return count

    def _key(self, name: str) -> str:
        return self._prefix + checked_name(name)

    def _place(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key(name)}

    def _object(self, name: str) -> S3Object:
        return S3Object(self._client, self._bucket, self._key(name), self._patience.attempts)

    def _told(self, name: str = "", *, reads: bool = False) -> AbstractContextManager[None]:
        return told(self.uri(name), endpoint=self._client.meta.endpoint_url, reads=reads)

    def _version(self, name: str) -> str | None:
        """Returns the version of what is there, None where nothing is."""
        try:
            return version_of(self._client.head_object(**self._place(name)))
        except ClientError as error:
            if is_missing(error):
                return None
            raise

    def _write_on(self, condition: dict[str, str], name: str, content: bytes) -> bool:
        for attempt in range(self._patience.attempts):
            try:
                self._client.put_object(**self._place(name), **condition, Body=content)
                return True
            except ClientError as error:
                if status_of(error) == _PRECONDITION_FAILED or is_missing(error):
                    return was_repeated(error) and self._holds(name, content)
                if status_of(error) == _NOT_IMPLEMENTED and condition:
                    condition = {}
                elif status_of(error) != _CONFLICT or attempt == self._patience.attempts - 1:
                    raise
                time.sleep(_PAUSE_S)
        return False

    def _holds(self, name: str, content: bytes) -> bool:
        """Whether a file is what was to be written: then the first request did it, and only its answer was lost."""
        stored = self.read(name)
        return stored is not None and stored.content == content

    def _upload(self, path: Path, name: str) -> None:
        with TransferManager(self._client, self._transfer) as transfers:
            transfers.upload(str(path), self._bucket, self._key(name)).result()

    def _uploads(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yields key and id of the uploads that nobody has completed."""
        pages = self._client.get_paginator("list_multipart_uploads")
        with _no_upload_is_fine():  # what some servers say of a bucket that never had one
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for upload in page.get("Uploads", ()):
                    yield upload["Key"], upload["UploadId"]


@contextmanager
def _no_upload_is_fine() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if code_of(error) != "NoSuchUpload":
            raise


@functools.lru_cache(maxsize=8)
def _client(patience: Patience, environment: frozenset[tuple[str, str]]) -> Any:  # noqa: ANN401, ARG001  (untyped)
    """Returns the client that all folders of this process share; a new one when the environment is another."""
    logger = logging.getLogger("botocore")  # below INFO it tells signatures, tokens and whole answers
    logger.setLevel(max(logging.INFO, logger.level))
    config = Config(
        connect_timeout=patience.connect_s,
        read_timeout=patience.read_s,
        retries={"mode": "standard", "total_max_attempts": patience.attempts},
        request_checksum_calculation="when_required",  # many servers that speak as S3 does know no others
        response_checksum_validation="when_required",
        max_pool_connections=_CONNECTIONS,
    )
    try:
        session = boto3.session.Session()
        client = session.client("s3", config=config)
        if _needs_path_style(client):
            client = session.client("s3", config=config.merge(Config(s3={"addressing_style": "path"})))
    except (BotoCoreError, ValueError) as error:
        raise no_settings(error) from None
    return client


def _needs_path_style(client: Any) -> bool:  # noqa: ANN401
    """Whether buckets are no host names: on servers of one's own, unless the profile says how they are addressed."""
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    is_amazon = host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    return not is_amazon and "addressing_style" not in (client.meta.config.s3 or {})


def _aws_environment() -> frozenset[tuple[str, str]]:
    """Returns the variables that boto3 reads, to tell whether a client is still the right one; nothing else of them."""
    return frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
