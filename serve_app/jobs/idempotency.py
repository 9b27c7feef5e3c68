"""Idempotency keys: a client that asks again, because it heard no answer, gets the job that it made before."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from serve_app.errors import InvalidRequestError, shown
from serve_app.jobs.database import to_text
from serve_app.jobs.job import Document

MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True)
class IdempotencyKey:
    """What a client calls its request, and the digest of that request."""

    key: str
    digest: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.key) <= MAX_KEY_CHARACTERS or not self.key.isprintable():
            raise InvalidRequestError(
                f"Idempotency-Key {shown(self.key)} is not of 1 to {MAX_KEY_CHARACTERS} printable characters",
                remedy="use a random one, for example a UUID",
                param="Idempotency-Key",
            )

    @classmethod
    def of(cls, key: str, request: Document) -> IdempotencyKey:
        """Returns the key of a request; the order of the request's fields does not matter.

        `request` is everything that was asked for; of an uploaded file its digest.
        """
        return cls(key, hashlib.sha256(to_text(request, name="request").encode()).hexdigest())
