"""The budget of restarts: how many, how soon, and that old ones are forgotten."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ray_cluster.restart_budget import RestartBudget, RestartPolicy


def test_the_wait_doubles_up_to_its_limit_and_then_the_budget_is_spent() -> None:
    budget = RestartBudget(RestartPolicy(max_restarts=5, backoff_s=2, max_backoff_s=7))
    assert [budget.spend(str(n), now=n) for n in range(6)] == [0, 2, 4, 7, 7, None]
    assert budget.reasons() == tuple("012345")


def test_failures_older_than_the_period_are_forgotten() -> None:
    budget = RestartBudget(RestartPolicy(max_restarts=1, within_s=600))
    assert budget.spend("a", now=0) == 0
    assert budget.spend("b", now=601) == 0
    assert budget.spend("c", now=700) is None
    assert budget.reasons() == ("b", "c")


def test_no_restarts_at_all() -> None:
    assert RestartBudget(RestartPolicy(max_restarts=0)).spend("a", now=0) is None


@pytest.mark.parametrize(("field", "value"), [("max_restarts", -1), ("within_s", 0), ("backoff_s", 0)])
def test_a_policy_without_sense_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{field} {value}")):
        RestartPolicy(**{field: value})
