"""An order that comes twice is obeyed once, and whoever asks gets the same report."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.bulk.lanes.answers import Answers
from serve_app.bulk.lanes.messages import RowOrder, RowReport

ORDER = RowOrder(seq=1, custom_id="a", attempt=2, spec={}, sha256={}, row_key="k", limit_s=1.0)


def test_who_asks_meanwhile_waits_for_the_same_report() -> None:
    answers, may_end, obeyed = Answers(), threading.Event(), []

    def obey(order: RowOrder) -> RowReport:
        obeyed.append(order)
        assert may_end.wait(10)
        return RowReport(order.seq, order.attempt, "lane")

    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(answers.of, ORDER, obey) for _ in range(2)]
        may_end.set()
        first, second = (one.result(10) for one in asked)
    assert first is second
    assert obeyed == [ORDER]
    assert answers.orders == ((1, 2),)
    answers.forget(1, 2)
    assert answers.orders == ()


def test_an_order_that_cannot_be_obeyed_fails_for_everybody_and_hangs_nobody() -> None:
    answers = Answers()

    def obey(_: RowOrder) -> RowReport:
        raise RuntimeError("a bug")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="a bug"):
            answers.of(ORDER, obey)
