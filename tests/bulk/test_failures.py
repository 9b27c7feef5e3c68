"""Whatever an attempt raises has a code, a stage, and says whether the ranks are to blame."""

from __future__ import annotations

import av
import pytest

from ray_cluster.errors import (
    ClusterError,
    FailureKind,
    GangBusyError,
    GroupUnavailableError,
    PlacementError,
    RankFailedError,
    RestartBudgetSpentError,
)
from serve_app.bulk.lanes.failures import has_brought_down, is_begun, row_error, story_of
from serve_app.bulk.outcomes import Code
from serve_app.deployments.gang_source import as_avatar_error
from serve_app.errors import (
    AudioTooShortError,
    AvatarError,
    CheckpointError,
    InputNotFoundError,
    InvalidRequestError,
    NotFiniteError,
    OutputError,
    RankError,
    RenderCancelledError,
    RenderFailedError,
    StorageError,
    UnsupportedMediaError,
)


def told(kind: type[AvatarError]) -> AvatarError:
    return kind("what happened", remedy="what to do")


def failed_rank(kind: FailureKind, *, detail: str = "it is gone", cause: Exception | None = None) -> RankFailedError:
    return RankFailedError(
        kind, rank=1, role="dit", detail=detail, remedy="see its log", cause=cause, traceback="Traceback of the rank"
    )


def of_the_gang(error: ClusterError) -> AvatarError:
    """Returns the error as `GangSource` raises it."""
    try:
        raise as_avatar_error(error) from error
    except AvatarError as raised:
        return raised


def raised_by(program: AvatarError) -> AvatarError:
    return of_the_gang(failed_rank(FailureKind.EXCEPTION, cause=program))


OF_THE_ROW = [
    (told(AudioTooShortError), Code.AUDIO_TOO_SHORT, "inputs"),
    (told(UnsupportedMediaError), Code.INPUT_UNDECODABLE, "inputs"),
    (told(InputNotFoundError), Code.INPUT_MISSING, "inputs"),
    (told(InvalidRequestError), Code.ROW_INVALID, "inputs"),
    (told(StorageError), Code.INPUT_UNREACHABLE, "inputs"),
    (MemoryError(), Code.INTERNAL, "inputs"),
]
OF_THE_RENDER: list[tuple[Exception, Code, str]] = [
    (told(RenderCancelledError), Code.CANCELLED, "render"),
    (told(RenderFailedError), Code.INTERNAL, "render"),
    (told(OutputError), Code.UPLOAD_FAILED, "upload"),
    (av.FFmpegError(1, "the encoder gives up"), Code.ENCODE_FAILED, "encode"),
    (RuntimeError("a bug"), Code.INTERNAL, "render"),
    (raised_by(told(NotFiniteError)), Code.NAN_LATENT, "render"),
    (raised_by(told(RankError)), Code.NCCL_TIMEOUT, "render"),
    (raised_by(told(RenderFailedError)), Code.INTERNAL, "render"),
    (raised_by(told(CheckpointError)), Code.INTERNAL, "render"),
    (of_the_gang(failed_rank(FailureKind.DIED)), Code.RANK_DIED, "render"),
    (of_the_gang(failed_rank(FailureKind.FROZEN)), Code.BLOCK_STALL, "render"),
    (of_the_gang(failed_rank(FailureKind.NO_PROGRESS)), Code.BLOCK_STALL, "render"),
    (of_the_gang(failed_rank(FailureKind.OUT_OF_MEMORY)), Code.OVER_BUDGET, "render"),
    (of_the_gang(failed_rank(FailureKind.EXCEPTION)), Code.INTERNAL, "render"),
    (
        of_the_gang(failed_rank(FailureKind.EXCEPTION, detail="NCCL error: unhandled system error")),
        Code.NCCL_TIMEOUT,
        "render",
    ),
]
OF_THE_OUTPUT = [
    (told(StorageError), Code.UPLOAD_FAILED, "upload"),
    (told(InputNotFoundError), Code.UPLOAD_FAILED, "upload"),
    (told(OutputError), Code.UPLOAD_FAILED, "upload"),
    (OSError(28, "No space left on device"), Code.UPLOAD_FAILED, "upload"),
    (ZeroDivisionError(), Code.INTERNAL, "upload"),
]
CASES = [
    *(("inputs", *case) for case in OF_THE_ROW),
    *(("render", *case) for case in OF_THE_RENDER),
    *(("upload", *case) for case in OF_THE_OUTPUT),
]


@pytest.mark.parametrize(("stage", "error", "code", "told_stage"), CASES, ids=lambda value: str(value)[:40])
def test_every_failure_has_its_code_and_its_stage(stage: str, error: Exception, code: Code, told_stage: str) -> None:
    row = row_error(error, attempt=2, lane="group-1", stage=stage, blocks_done=7)
    assert (row.code, row.stage) == (code, told_stage)
    assert (row.attempt, row.group, row.blocks_done) == (2, "group-1", 7)


def test_the_message_of_an_error_for_users_has_its_remedy() -> None:
    row = row_error(told(OutputError), attempt=1, lane="a", stage="render")
    assert row.message == "what happened; what to do"


def test_the_message_of_a_bug_has_its_class() -> None:
    row = row_error(ValueError("no number"), attempt=1, lane="a", stage="render")
    assert row.message == "ValueError: no number"


def test_a_rank_that_failed_is_named_with_its_reason() -> None:
    error = of_the_gang(failed_rank(FailureKind.DIED, detail="exit code -9"))
    message = row_error(error, attempt=1, lane="a", stage="render").message
    assert "rank 1 (dit) died: exit code -9" in message
    assert "memory" in message


NOT_THERE: list[ClusterError] = [
    GroupUnavailableError("group a is rebuilt", remedy="wait"),
    RestartBudgetSpentError("a", reasons=("died", "died"), max_restarts=1, within_s=60),
    PlacementError("no place", can_never_fit=False, remedy="add nodes"),
    GangBusyError("busy", remedy="wait"),
]


@pytest.mark.parametrize("cause", NOT_THERE, ids=lambda cause: type(cause).__name__)
def test_a_group_that_was_not_there_says_nothing_of_the_row(cause: ClusterError) -> None:
    error = of_the_gang(cause)
    assert (is_begun(error), has_brought_down(error)) == (False, False)
    row = row_error(error, attempt=1, lane="a", stage="inputs")
    assert (row.code, row.stage, row.is_retryable) == (Code.NODE_LOST, "render", True)


@pytest.mark.parametrize("kind", FailureKind)
def test_whatever_a_rank_does_its_group_is_down(kind: FailureKind) -> None:
    error = of_the_gang(failed_rank(kind))
    assert (is_begun(error), has_brought_down(error)) == (True, True)


@pytest.mark.parametrize("error", [raised_by(told(NotFiniteError)), raised_by(told(RankError))], ids=str)
def test_what_a_program_raises_brings_its_group_down(error: AvatarError) -> None:
    assert (is_begun(error), has_brought_down(error)) == (True, True)


@pytest.mark.parametrize("error", [told(OutputError), RuntimeError("a bug"), told(RenderCancelledError)], ids=str)
def test_what_happens_beside_the_ranks_leaves_them_alone(error: Exception) -> None:
    assert (is_begun(error), has_brought_down(error)) == (True, False)


def test_the_story_has_what_happened_here_and_in_the_rank() -> None:
    story = story_of(of_the_gang(failed_rank(FailureKind.EXCEPTION, detail="ValueError: 5")))
    assert "GangFailedError" in story
    assert story.endswith("Traceback of the rank")
    assert "ZeroDivisionError" in story_of(ZeroDivisionError())
