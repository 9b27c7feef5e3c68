"""The measure of all parity tests cannot be fooled."""

from __future__ import annotations

import math

import pytest
import torch

from tests.parity.golden import largest_error


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_infinitely_wrong(bad: float) -> None:
    assert largest_error(torch.tensor([1.0, bad, 3.0]), torch.tensor([1.0, 2.0, 3.0])) == math.inf


def test_the_largest_difference_counts() -> None:
    assert largest_error(torch.tensor([1.0, 2.5]), torch.tensor([1.25, 2.0])) == 0.5


def test_another_shape_is_no_error_but_a_failure() -> None:
    with pytest.raises(AssertionError, match=r"\(2,\) is not \(1, 2\)"):
        largest_error(torch.zeros(2), torch.zeros(1, 2))
