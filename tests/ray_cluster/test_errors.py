"""Errors that cross processes."""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any

import pytest

from ray_cluster.errors import (
    ClusterError,
    FailureKind,
    GroupUnavailableError,
    PlacementError,
    RankFailedError,
    RestartBudgetSpentError,
)
from ray_cluster.gang import GangSpec, GangTimeouts
from ray_cluster.raised import Raised
from tests.ray_cluster.fake_program import RefusalError

RANK_FAILED = RankFailedError(
    FailureKind.EXCEPTION,
    rank=2,
    role="vae",
    detail="ValueError: 5",
    remedy="see the log",
    cause=ValueError(5),
    cause_type="ValueError",
    traceback="line 1",
)


@pytest.mark.parametrize(
    "error",
    [
        RANK_FAILED,
        PlacementError("no place", can_never_fit=True, remedy="add a node"),
        GroupUnavailableError("drains", remedy="use another"),
        RestartBudgetSpentError("g0", reasons=("a", "b"), max_restarts=1, within_s=600),
    ],
)
def test_an_error_is_the_same_after_pickling(error: ClusterError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert {name: str(value) for name, value in vars(copy).items()} == {
        name: str(value) for name, value in vars(error).items()
    }


def test_a_message_names_rank_role_reason_and_remedy() -> None:
    assert str(RANK_FAILED) == "rank 2 (vae) raised: ValueError: 5; see the log"


def test_the_budget_lists_its_reasons() -> None:
    error = RestartBudgetSpentError("g0", reasons=("a", "b"), max_restarts=1, within_s=600)
    assert "group g0 failed 2 times, more than 1 restarts in 600 s: 1) a; 2) b" in str(error)


def raised(error: Exception) -> Raised:
    return pickle.loads(pickle.dumps(Raised.of(error)))


def test_an_exception_with_keywords_of_its_own_comes_back_whole() -> None:
    cause = raised(RefusalError("no such voice", remedy="take another")).cause()
    assert isinstance(cause, RefusalError)
    assert (str(cause), cause.remedy) == ("no such voice", "take another")


def test_an_exception_that_does_not_pickle_comes_as_text() -> None:
    packed = raised(ValueError("of", lambda: None))
    assert packed.cause() is None
    assert packed.type_name == "ValueError"


def test_a_cause_of_an_unknown_module_loads_nothing() -> None:
    module = types.ModuleType("heavy_library")
    exec("class OutOfMemoryError(RuntimeError): pass", vars(module))
    sys.modules["heavy_library"] = module
    packed = raised(module.OutOfMemoryError("of the GPU"))
    assert packed.cause() is not None
    del sys.modules["heavy_library"]
    assert packed.cause() is None
    assert (packed.type_name, packed.is_out_of_memory) == ("heavy_library.OutOfMemoryError", True)


@pytest.mark.parametrize("kind", list(FailureKind))
def test_what_a_program_raises_by_itself_is_not_transient(kind: FailureKind) -> None:
    assert kind.is_transient is (kind not in (FailureKind.EXCEPTION, FailureKind.OUT_OF_MEMORY))


@pytest.mark.parametrize("limits", [{"start_s": 0}, {"heartbeat_s": -1}, {"heartbeat_every_s": 5}])
def test_limits_without_sense_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(limits))} .*; give"):
        GangTimeouts(**limits)


@pytest.mark.parametrize(
    ("fields", "words"), [({"program": "a.b.C"}, "write package.module:name"), ({"num_buffered": 0}, "at least 1")]
)
def test_a_spec_that_cannot_run_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GangSpec(**{"program": "a.b:C", **fields})
