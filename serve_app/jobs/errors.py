"""What goes wrong around jobs, each with its code."""

from __future__ import annotations

from serve_app.errors import AvatarError


class JobNotFoundError(AvatarError):
    """There is no job of that id."""

    code = "job_not_found"

    @classmethod
    def of(cls, job_id: str) -> JobNotFoundError:
        return cls(f"there is no job {job_id[:80]!r}", remedy="use the id that the answer to POST named", param="id")


class IllegalTransitionError(AvatarError):
    """A job cannot go from the state that it is in to the one that was asked for."""

    code = "illegal_transition"


class StaleAttemptError(AvatarError):
    """A report speaks of an attempt that was given up: another one runs, or has ended."""

    code = "stale_attempt"


class StaleEpochError(AvatarError):
    """Another Dispatcher has taken over the job store; this one may write no more."""

    code = "stale_epoch"


class IdempotencyConflictError(AvatarError):
    """An idempotency key was used before, for another request."""

    code = "idempotency_conflict"


class StoreError(AvatarError):
    """The job store cannot be opened or is of another version."""

    code = "job_store"
