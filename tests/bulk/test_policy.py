"""When a row is tried again, and when the whole job pauses."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.bulk.outcomes import FAULT_OF, Code, Fault
from serve_app.bulk.policy import Breaker, RetryPolicy
from tests.bulk.rows import error

POLICY = RetryPolicy(max_attempts=4, first_s=10.0, max_brought_down=2)


def test_every_further_attempt_waits_twice_as_long() -> None:
    delays = [
        POLICY.delay_s(error(Code.RANK_DIED), attempt=attempt, brought_down=0, chance=0.5) for attempt in (1, 2, 3)
    ]
    assert delays == [10.0, 20.0, 40.0]


@given(attempt=st.integers(1, 3), chance=st.floats(0, 1))
def test_chance_moves_an_attempt_by_a_quarter_at_most(attempt: int, chance: float) -> None:
    delay_s = POLICY.delay_s(error(Code.TIMEOUT), attempt=attempt, brought_down=0, chance=chance)
    assert delay_s is not None
    assert 7.5 <= delay_s / 2 ** (attempt - 1) <= 12.5


def test_rows_that_failed_together_do_not_come_again_together() -> None:
    delays = {
        POLICY.delay_s(error(Code.TIMEOUT), attempt=1, brought_down=0, chance=chance) for chance in (0.0, 0.3, 1.0)
    }
    assert len(delays) == 3


def test_the_last_attempt_is_the_last() -> None:
    assert POLICY.delay_s(error(Code.RANK_DIED), attempt=4, brought_down=0, chance=0.5) is None


def test_a_row_under_which_two_groups_failed_is_left_alone() -> None:
    assert POLICY.delay_s(error(Code.RANK_DIED), attempt=2, brought_down=1, chance=0.5) is not None
    assert POLICY.delay_s(error(Code.RANK_DIED), attempt=2, brought_down=2, chance=0.5) is None


@pytest.mark.parametrize("code", Code)
def test_what_is_wrong_with_the_row_itself_is_never_tried_again(code: Code) -> None:
    delay_s = POLICY.delay_s(error(code), attempt=1, brought_down=0, chance=0.5)
    is_of_the_row = FAULT_OF[code] in (Fault.INPUT, Fault.CANCELLED) or code is Code.NEVER_FITS
    assert (delay_s is None) == is_of_the_row


def breaker_after(outcomes: list[Code | None], *, window: int = 20, share: float = 0.2) -> Breaker:
    breaker = Breaker(window, share)
    for code in outcomes:
        breaker.note(None if code is None else error(code))
    return breaker


def test_the_breaker_opens_when_more_than_a_fifth_of_twenty_failed() -> None:
    assert not breaker_after([Code.RANK_DIED] * 4 + [None] * 16).is_open
    assert breaker_after([Code.RANK_DIED] * 5 + [None] * 15).is_open


def test_the_breaker_waits_for_a_whole_window() -> None:
    assert not breaker_after([Code.RANK_DIED] * 19).is_open
    assert breaker_after([Code.RANK_DIED] * 20).is_open


def test_the_breaker_forgets_what_is_long_ago() -> None:
    assert not breaker_after([Code.RANK_DIED] * 5 + [None] * 16).is_open


@pytest.mark.parametrize("code", Code)
def test_the_breaker_counts_what_is_no_fault_of_the_rows(code: Code) -> None:
    counts = FAULT_OF[code] in (Fault.INFRA, Fault.MODEL, Fault.OUTPUT)
    assert breaker_after([code] * 20).is_open == counts


def test_a_disk_that_is_full_opens_the_breaker() -> None:
    assert breaker_after([Code.UPLOAD_FAILED] * 20).is_open


@given(outcomes=st.lists(st.sampled_from([None, Code.RANK_DIED, Code.INPUT_MISSING]), max_size=40))
def test_the_breaker_looks_at_the_last_few_alone(outcomes: list[Code | None]) -> None:
    last = outcomes[-5:]
    failed = sum(code is Code.RANK_DIED for code in last)
    assert breaker_after(outcomes, window=5, share=0.4).is_open == (len(last) == 5 and failed > 2)


def test_every_code_has_a_class() -> None:
    assert set(FAULT_OF) == set(Code)
    assert list(itertools.filterfalse(lambda fault: fault in FAULT_OF.values(), Fault)) == []
