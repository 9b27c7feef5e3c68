"""How long something has been so, for a driver that may be held up."""

from __future__ import annotations

import pytest

from serve_app.bulk.lasting import Lasting


@pytest.mark.parametrize(
    ("looks", "seconds"),
    [
        ([(100.0, True)], 0.0),
        ([(100.0, True), (100.5, True), (102.0, True)], 2.0),
        ([(100.0, False), (100.5, True), (102.0, True)], 1.5),
        ([(100.0, True), (101.0, True), (102.0, False)], 0.0),
        ([(100.0, True), (101.0, False), (102.0, True), (102.5, True)], 0.5),
        ([(100.0, True), (4000.0, True)], 5.0),
        ([(100.0, True), (4000.0, True), (4001.0, True)], 6.0),
    ],
)
def test_time_counts_while_it_is_so_and_the_driver_looks(looks: list[tuple[float, bool]], seconds: float) -> None:
    lasting = Lasting()
    assert [lasting.look(is_so=is_so, now=now) for now, is_so in looks][-1] == seconds
