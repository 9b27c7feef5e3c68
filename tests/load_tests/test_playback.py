"""Stalls on made-up arrival times, and fragments read from real ones."""

from __future__ import annotations

import pytest

from load_tests.playback import Fragment, FragmentReader, Playback
from tests.load_tests.standin import grey_video

BLOCK_S = 0.48


def played(arrivals: list[float], *, block_s: float = BLOCK_S) -> Playback:
    playback = Playback()
    for number, at_s in enumerate(arrivals):
        playback.arrive(Fragment(number * block_s, block_s), at_s)
    return playback


@pytest.mark.parametrize(
    ("arrivals", "num_stalls", "stalled_s"),
    [
        ([3.0], 0, 0),
        ([3.0, 3.1, 3.2, 3.3], 0, 0),  # faster than it plays
        ([1.0, 1.48, 1.96, 2.44], 0, 0),  # just in time
        ([1.0, 1.58, 2.06, 2.54], 1, 0.1),  # one is late, and all after it by as much
        ([1.0, 1.58, 2.16, 2.74], 3, 0.3),  # each is late by a little more
        ([1.0, 1.1, 4.0, 4.1], 1, 2.04),  # two were there; the third came 3 s after the first
        ([1.0, 2.48, 2.5, 2.6], 1, 1.0),  # what came late lets later ones be early
    ],
)
def test_a_player_stands_still_while_the_next_fragment_is_not_there(
    arrivals: list[float], num_stalls: int, stalled_s: float
) -> None:
    playback = played(arrivals)
    assert playback.num_stalls == num_stalls
    assert playback.stalled_s == pytest.approx(stalled_s)
    assert playback.media_s == pytest.approx(len(arrivals) * BLOCK_S)


def test_a_late_stream_starts_at_its_own_media_time() -> None:
    playback = Playback()
    playback.arrive(Fragment(10.0, BLOCK_S), 2.0)
    playback.arrive(Fragment(10.0 + BLOCK_S, BLOCK_S), 2.48)
    assert playback.num_stalls == 0


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000, 10**6])
def test_fragments_are_read_from_pieces_of_any_size(chunk_bytes: int) -> None:
    video, reader = b"".join(grey_video(4)), FragmentReader()
    pieces = [video[start : start + chunk_bytes] for start in range(0, len(video), chunk_bytes)]
    fragments = [fragment for piece in pieces for fragment in reader.feed(piece)]
    assert fragments == [Fragment(pytest.approx(number * BLOCK_S), pytest.approx(BLOCK_S)) for number in range(4)]


def test_a_fragment_is_there_with_its_last_byte() -> None:
    init, first, _, _, _ = grey_video(4)
    reader = FragmentReader()
    assert reader.feed(init + first[:-1]) == []
    assert len(reader.feed(first[-1:])) == 1


def test_pictures_are_not_kept() -> None:
    init, first, *_ = grey_video(4)
    reader = FragmentReader()
    for _ in range(100):
        reader.feed(init + first)
    assert len(reader._pending) == 0


@pytest.mark.parametrize("content", [b"<html>not found, sorry</html>", b"\0\0\0\x04abcd", grey_video(4)[1]])
def test_what_is_no_mp4_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"box|moof|mdat"):
        FragmentReader().feed(content)
