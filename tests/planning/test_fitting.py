"""A fit to few points."""

from __future__ import annotations

from serve_app.planning.fitting import Peak, Point, leave_one_out

POINT = Point(
    size="704x384",
    infer_frames=48,
    call_tflop=100.0,
    call_seconds=0.2,
    decode_tflop=20.0,
    decode_seconds=0.1,
    denoise=Peak(2**30, 2**30),
    decode=Peak(2**29, 2**29),
    resident=Peak(2**33, 2**33),
    total_bytes=2**33 + 2**30,
)


def test_one_point_has_no_others_to_foretell_it() -> None:
    assert leave_one_out([POINT]) == []
    assert [left.memory_error for left in leave_one_out([POINT, POINT])] == [0.0, 0.0]
