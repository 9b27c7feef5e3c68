"""What S3 refuses or fails to do, in our own words: those of servers and libraries may hold what must stay secret."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError

from serve_app.errors import AvatarError, InputNotFoundError, StorageError


class BucketNotFoundError(InputNotFoundError):
    """There is not even the bucket."""


_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.NoAuthTokenError,
    boto.SSOError,
)
_NO_CONNECTION = (boto.ConnectionError, boto.HTTPClientError)
_WRONG_CREDENTIALS = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_WRONG_REGION = {"301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
_MISSING = {"404", "NoSuchKey", "NotFound"}
_PERMISSION = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectsV2": "s3:ListBucket",
    "GetObject": "s3:GetObject and s3:ListBucket",  # without the second a missing file is a refusal too
    "HeadObject": "s3:GetObject and s3:ListBucket",
}
_NO_LONGER_SO = (412, 416)
"""Statuses of reads that name a version, or a range that was there."""
_PLAIN = re.compile(r"[A-Za-z0-9.]{1,64}")
_GIVE_CREDENTIALS = (
    "check what boto3 reads: AWS_PROFILE, or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
)
_CHECK_ENDPOINT = "check AWS_ENDPOINT_URL and the network"


@contextmanager
def told(uri: str, *, endpoint: str, reads: bool) -> Iterator[None]:
    """Raises what goes wrong with `uri` as an AvatarError: InputNotFoundError if it `reads` what is not there."""
    try:
        yield
    except ClientError as error:
        raise _refusal(error, uri=uri, reads=reads) from None  # the server's text stays out of tracebacks too
    except BotoCoreError as error:
        raise _failure(error, uri=uri, endpoint=endpoint) from None


def code_of(error: ClientError) -> str:
    """Returns the server's code of a refusal, such as NoSuchKey; of HEAD requests it is the status."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if _PLAIN.fullmatch(code) else "an unknown code"


def status_of(error: ClientError) -> int:
    """Returns the HTTP status of a refusal."""
    return int(_metadata(error).get("HTTPStatusCode", 0))


def was_repeated(error: ClientError) -> bool:
    """Whether the request was sent more than once, so that an earlier one may have done its work."""
    return int(_metadata(error).get("RetryAttempts", 0)) > 0


def is_missing(error: ClientError) -> bool:
    """Whether the bucket is there, as far as the server tells, and the object is not."""
    return code_of(error) in _MISSING


def replaced(uri: str) -> StorageError:
    """Returns what is said when an object is no longer the one whose beginning was read."""
    return StorageError(f'"{uri}" was replaced while it was read', remedy="read it again, once nobody writes it")


def no_settings(error: BotoCoreError | ValueError) -> AvatarError:
    """Returns what is said when no client can be made of the AWS settings."""
    reason = f": {error}" if isinstance(error, boto.ProfileNotFound) else f" ({type(error).__name__})"
    return StorageError(
        f"the AWS settings are of no use{reason}",
        remedy="check AWS_ENDPOINT_URL (http://host:port), AWS_PROFILE and the file that AWS_CONFIG_FILE names",
    )


def _metadata(error: ClientError) -> dict[str, Any]:
    metadata: dict[str, Any] = dict(error.response.get("ResponseMetadata", {}))
    return metadata


def _refusal(error: ClientError, *, uri: str, reads: bool) -> AvatarError:
    code, status = code_of(error), status_of(error)
    if code == "NoSuchBucket":
        kind = BucketNotFoundError if reads else StorageError
        return kind(f'there is no bucket for "{uri}"', remedy="make the bucket, or correct its name")
    if is_missing(error) and reads:
        return InputNotFoundError(
            f'there is no "{uri}"', remedy="put it there, or correct its name where it is asked for"
        )
    if status in _NO_LONGER_SO and reads:
        return replaced(uri)
    return StorageError(
        f'"{uri}": the server answers {code} ({status}) to {error.operation_name}',
        remedy=_remedy(code, status, operation=error.operation_name),
    )


def _remedy(code: str, status: int, *, operation: str) -> str:
    if code in _WRONG_CREDENTIALS:
        return f"{_GIVE_CREDENTIALS}; and this machine's clock"
    if code in _WRONG_REGION:
        return "set AWS_DEFAULT_REGION to the bucket's region"
    if status in (401, 403):
        permission = _PERMISSION.get(operation, "s3:PutObject")
        return f"let the bucket's policy give these credentials {permission}; {_GIVE_CREDENTIALS}"
    if status >= 500 or status == 429:
        return "try again later: it said so each time it was asked"
    return "check AWS_ENDPOINT_URL and AWS_DEFAULT_REGION, and whether the server knows such requests"


def _failure(error: BotoCoreError, *, uri: str, endpoint: str) -> AvatarError:
    server, kind = _without_user(endpoint), type(error).__name__
    if isinstance(error, _NO_CREDENTIALS):
        return StorageError(f'"{uri}": there are no credentials ({kind})', remedy=_GIVE_CREDENTIALS)
    if isinstance(error, boto.SSLError):
        return StorageError(
            f'"{uri}": the certificate of {server} is not trusted',
            remedy="name the file of its authority in AWS_CA_BUNDLE, or correct AWS_ENDPOINT_URL",
        )
    if isinstance(error, _NO_CONNECTION):
        return StorageError(f'"{uri}": {server} does not answer ({kind})', remedy=_CHECK_ENDPOINT)
    return StorageError(f'"{uri}": boto3 gives up ({kind})', remedy=f"{_CHECK_ENDPOINT}; {_GIVE_CREDENTIALS}")


def _without_user(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
