"""Folders by their URI: a path of this machine, or s3://bucket/prefix."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from serve_app.errors import AvatarError, InvalidRequestError, shown
from serve_app.storage.base import Folder, checked_name
from serve_app.storage.local_folder import LocalFolder

_S3 = "s3://"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BUCKET = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]{1,255}")
_PACKAGES_OF_S3 = ("boto3", "botocore", "s3transfer")


def open_folder(uri: str) -> Folder:
    """Returns the folder at a URI, without looking whether it is there.

    Raises InvalidRequestError for what is no URI of a folder, StorageError for AWS settings that cannot be read, and
    AvatarError where S3's packages are missing.
    """
    if is_remote(uri):
        bucket, prefix = _bucket_and_key(uri)
        return _s3_folder(bucket, prefix)
    return LocalFolder(_path(uri))


def is_remote(uri: str) -> bool:
    """Whether a URI names a bucket; raises InvalidRequestError for schemes other than s3."""
    scheme = _SCHEME.match(uri)
    if scheme and scheme[0] != _S3:
        raise InvalidRequestError(
            f"{shown(uri)} is neither a path nor s3://bucket/name", remedy="write a path of this machine, or s3://..."
        )
    return scheme is not None


def split_uri(uri: str) -> tuple[str, str]:
    """Returns the URI of a file's folder, and its name there; raises InvalidRequestError for what names no file."""
    if is_remote(uri):
        bucket, key = _bucket_and_key(uri)
        above, _, name = key.rpartition("/")
        folder = f"{_S3}{bucket}/{above}" if above else f"{_S3}{bucket}"
    else:
        path = _path(uri)
        folder, name = str(path.parent), path.name
    if name in ("", ".."):
        raise InvalidRequestError(f"{shown(uri)} names no file", remedy="write the file's name behind its folder")
    return folder, name


def parent_of(uri: str) -> str:
    """Returns the URI of a file's folder; raises InvalidRequestError for what names no file."""
    return split_uri(uri)[0]


def join(base_uri: str, written: str) -> str:
    """Returns the URI of what is written relative to a folder; a full path or URI stands as it is.

    "." and ".." mean what they mean in paths; above a bucket there is nothing, as above "/".
    """
    if is_remote(written) or Path(written).is_absolute():
        return written
    if is_remote(base_uri):
        bucket, prefix = _bucket_and_key(base_uri)
        key = posixpath.normpath("/" + posixpath.join(prefix, written))
        return f"{_S3}{bucket}{key}".removesuffix("/")
    return str(_path(base_uri) / _path(written))


def _path(uri: str) -> Path:
    try:
        if uri and b"\0" not in os.fsencode(uri):
            return Path(uri)
    except UnicodeEncodeError:
        pass
    raise InvalidRequestError(f"{shown(uri)} is no path", remedy="write a path of this machine, or s3://bucket/name")


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(_S3).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidRequestError(f"{shown(uri)} names no bucket", remedy="write s3://bucket/name")
    key = key.removesuffix("/")
    return bucket, checked_name(key) if key else ""


def _s3_folder(bucket: str, prefix: str) -> Folder:
    try:
        from serve_app.storage.s3 import S3Folder  # its packages are an extra, and take a tenth of a second to import
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in _PACKAGES_OF_S3:
            raise
        raise AvatarError(
            f"{package} is not installed",
            remedy='install the s3\'s packages: pip install "live-avatar-serve[s3]"',
        ) from error
    return S3Folder(bucket, prefix)
