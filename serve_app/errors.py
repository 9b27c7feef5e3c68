"""The errors that a user can meet: each names the value, the rule and the remedy."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


class AvatarError(Exception):
    """Stops a piece of work and tells the user what to do about it.

    `code` is stable and machine-readable; the CLI, the HTTP API and bulk reports share it.
    `exit_code` is what the command line returns for it.
    """

    code = "internal_error"
    exit_code = 1

    def __init__(self, message: str, *, remedy: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.param = param

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets an error travel between processes, which Python's own way does not with keyword arguments."""
        return _rebuilt, (type(self), self.message, self.remedy, self.param)


def _rebuilt(kind: type[AvatarError], message: str, remedy: str, param: str | None) -> AvatarError:
    return kind(message, remedy=remedy, param=param)


class InvalidRequestError(AvatarError):
    """A request breaks a rule before any work starts."""

    code = "invalid_request"
    exit_code = 2


class InputNotFoundError(AvatarError):
    """An input file does not exist or cannot be read."""

    code = "input_not_found"
    exit_code = 2


class UnsupportedMediaError(AvatarError):
    """A file is not the image or sound that it should be."""

    code = "unsupported_media"
    exit_code = 2


class AudioTooShortError(UnsupportedMediaError):
    """A voice is whole, but over before a video could begin."""


class CheckpointError(AvatarError):
    """A checkpoint folder lacks something or does not fit the model."""

    code = "invalid_checkpoint"
    exit_code = 2


class OutputError(AvatarError):
    """The result cannot be written."""

    code = "output_not_writable"
    exit_code = 2


class StorageError(AvatarError):
    """A place of files, a disk or a bucket, does not answer or refuses."""

    code = "storage_unavailable"


class RenderFailedError(AvatarError):
    """A render ended before its video was whole."""

    code = "render_failed"


class RankError(AvatarError):
    """A rank cannot reach the others of its gang, or they ended."""

    code = "rank_failed"


class NotFiniteError(RenderFailedError):
    """The model made something that is no number: a picture of it would be noise."""

    code = "not_finite"


class GangFailedError(AvatarError):
    """The ranks that shared a video failed, or found no place; nothing of the video is kept.

    `details` is the traceback of the rank that raised, "" where there is none.
    """

    details = ""

    code = "gang_failed"


class RenderCancelledError(AvatarError):
    """A render was stopped on request, at a block border."""

    code = "cancelled"
    exit_code = 130


class UnavailableError(AvatarError):
    """The service cannot answer now: it starts, restarts or shuts down. Nothing that was accepted is lost."""

    code = "unavailable"


class UploadNotFoundError(AvatarError):
    """There is no upload of that id."""

    code = "file_not_found"

    @classmethod
    def of(cls, file_id: str) -> UploadNotFoundError:
        return cls(f"there is no file {file_id[:80]!r}", remedy="use the id that POST /v1/files answered", param="id")


def shown(value: object) -> str:
    """Returns a value as a message quotes it: a prompt of a thousand lines does not belong there."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"of type {type(value).__name__}"


def did_you_mean(word: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Returns the remark that points a misspelled word to its like, written behind `prefix`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""
