"""From what an attempt raised to the error of its row."""

from __future__ import annotations

import traceback

import av

from ray_cluster.errors import ClusterError, FailureKind, RankFailedError
from serve_app.bulk.outcomes import Code, RowError
from serve_app.errors import (
    AudioTooShortError,
    AvatarError,
    InputNotFoundError,
    InvalidRequestError,
    NotFiniteError,
    OutputError,
    RankError,
    RenderCancelledError,
    StorageError,
    UnsupportedMediaError,
)
from serve_app.troubleshooting import remedy_for

_BY_KIND = {
    FailureKind.DIED: Code.RANK_DIED,
    FailureKind.FROZEN: Code.BLOCK_STALL,
    FailureKind.NO_PROGRESS: Code.BLOCK_STALL,
    FailureKind.OUT_OF_MEMORY: Code.OVER_BUDGET,
    FailureKind.EXCEPTION: Code.INTERNAL,
}
_OUTPUT = "upload"
_BY_TYPE: tuple[tuple[type[Exception], Code, str], ...] = (
    (NotFiniteError, Code.NAN_LATENT, "render"),
    (RankError, Code.NCCL_TIMEOUT, "render"),
    (RenderCancelledError, Code.CANCELLED, "render"),
    (AudioTooShortError, Code.AUDIO_TOO_SHORT, "inputs"),
    (UnsupportedMediaError, Code.INPUT_UNDECODABLE, "inputs"),
    (InputNotFoundError, Code.INPUT_MISSING, "inputs"),
    (InvalidRequestError, Code.ROW_INVALID, "inputs"),
    (StorageError, Code.INPUT_UNREACHABLE, "inputs"),
    (OutputError, Code.UPLOAD_FAILED, _OUTPUT),
    (av.FFmpegError, Code.ENCODE_FAILED, "encode"),
)


def row_error(error: Exception, *, attempt: int, lane: str, stage: str, blocks_done: int = 0) -> RowError:
    """Returns the error of the attempt that raised `error` at that stage; see RowError."""
    code, told_stage = _classified(error, stage)
    message = str(error) if isinstance(error, AvatarError) else f"{type(error).__name__}: {error}"
    return RowError(code, message, told_stage, attempt=attempt, group=lane, blocks_done=blocks_done)


def has_brought_down(error: Exception) -> bool:
    """Whether ranks failed because of, or at least during, the attempt that raised `error`."""
    return _failed_rank(error) is not None


def is_begun(error: Exception) -> bool:
    """Whether ranks had begun the attempt: a group that was not there, or is given up, says nothing of the row."""
    cause = error.__cause__
    return not isinstance(cause, ClusterError) or isinstance(cause, RankFailedError)


def story_of(error: Exception) -> str:
    """Returns all that is known of an error, for a log: also what a rank raised, in its own process."""
    story = "".join(traceback.format_exception(error))
    rank = _failed_rank(error)
    return f"{story}\n{rank.traceback}" if rank is not None and rank.traceback else story


def _classified(error: Exception, stage: str) -> tuple[Code, str]:
    if stage == _OUTPUT and isinstance(error, AvatarError | OSError):
        return Code.UPLOAD_FAILED, _OUTPUT
    for kind, code, its_stage in _BY_TYPE:
        if isinstance(error, kind):
            return code, its_stage
    rank = _failed_rank(error)
    if rank is None:
        return (Code.NODE_LOST, "render") if not is_begun(error) else (Code.INTERNAL, stage)
    if rank.kind is FailureKind.EXCEPTION and "NCCL" in (remedy_for(str(error)) or ""):
        return Code.NCCL_TIMEOUT, "render"
    return _BY_KIND[rank.kind], "render"


def _failed_rank(error: BaseException) -> RankFailedError | None:
    cause = error.__cause__
    return cause if isinstance(cause, RankFailedError) else None
