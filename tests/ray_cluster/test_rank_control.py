"""What program and gang tell each other, without a process in between."""

from __future__ import annotations

import threading

from ray_cluster.rank_actor import RankControl
from tests.ray_cluster.conftest import eventually


def test_the_window_moves_with_what_was_taken() -> None:
    control = RankControl(window=2)
    control.begin(1)
    assert control.wait_for_turn(1, timeout_s=0)
    assert not control.wait_for_turn(2, timeout_s=0)
    control.advance(1, 1)
    assert control.wait_for_turn(2, timeout_s=0)


def test_messages_of_an_earlier_run_do_nothing() -> None:
    control = RankControl(window=1)
    control.begin(2)
    control.advance(1, 100)
    control.cancel(1)
    assert not control.wait_for_turn(1, timeout_s=0)
    assert not control.is_cancelled()


def test_messages_that_overtake_the_begin_are_kept() -> None:
    control = RankControl(window=1)
    control.advance(1, 3)
    control.cancel(2)
    control.begin(1)
    assert control.wait_for_turn(3, timeout_s=0)
    assert not control.is_cancelled()
    control.begin(2)
    assert control.is_cancelled()


def test_messages_that_arrive_out_of_order_never_move_the_window_back() -> None:
    control = RankControl(window=1)
    control.begin(1)
    control.advance(1, 3)
    control.advance(1, 2)
    assert control.wait_for_turn(3, timeout_s=0)


def test_a_cancel_ends_the_wait() -> None:
    control = RankControl(window=1)
    control.begin(1)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(control.wait_for_turn(5, timeout_s=20)))
    waiting.start()
    control.cancel(1)
    waiting.join(5)
    assert answers == [True]


def test_a_note_renews_the_age() -> None:
    control = RankControl(window=1)
    eventually(lambda: control.last_note()[2] > 0.05)
    control.note("block 3")
    num_notes, activity, age_s = control.last_note()
    assert (num_notes, activity) == (1, "block 3")
    assert age_s < 0.05
