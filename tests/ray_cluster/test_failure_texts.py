"""What is told of a failure: its cause before its effects, and Ray's words without its guesses."""

from __future__ import annotations

import pytest

from ray_cluster.errors import FailureKind, RankFailedError
from ray_cluster.gang_watch import exit_text, root_cause

DEATH = """The actor died unexpectedly before finishing this task.
class_name: RankActor
actor_id: 0123456789abcdef
namespace: 1-2-3
Worker exit type: SYSTEM_ERROR. Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of \
file. Some common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop \
--force was called, or (3) the worker crashed unexpectedly due to SIGSEGV or another unexpected error."""


def failure(kind: FailureKind, rank: int, *, cause_type: str = "") -> RankFailedError:
    return RankFailedError(kind, rank=rank, role="", detail="", remedy="", cause_type=cause_type)


@pytest.mark.parametrize("kind", [FailureKind.DIED, FailureKind.OUT_OF_MEMORY])
def test_a_lost_rank_explains_what_its_neighbour_raised_before(kind: FailureKind) -> None:
    neighbour = failure(FailureKind.EXCEPTION, 0, cause_type="ConnectionError")
    assert root_cause([neighbour, failure(kind, 1)], [1.0, 1.3]).rank == 1


def test_of_exceptions_the_first_one_counts() -> None:
    later, first = (failure(FailureKind.EXCEPTION, rank, cause_type="ValueError") for rank in (0, 1))
    assert root_cause([later, first], [2.0, 1.0]).rank == 1


def test_rays_guesses_about_a_death_are_left_out() -> None:
    told = exit_text(RuntimeError(DEATH))
    assert told.endswith("connection error code 2. End of file.")
    assert "OOM" not in told
    assert "RankActor" not in told
