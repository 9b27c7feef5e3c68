"""Plays a live stream back without decoding it: which fragment came when, and where a player would have stood still.

A fragment's place in the video is read from its own boxes (moof: tfdt, tfhd, trun of the picture's track).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

_CONTAINERS = {b"moov", b"trak", b"mdia", b"mvex", b"moof", b"traf"}
_TOP_LEVEL = {b"ftyp", b"styp", b"sidx", b"free", b"skip", b"moov", b"moof", b"mdat", b"mfra"}
_MAX_HEAD_BYTES = 1 << 20
"""Of a moov or moof: those of a block have a few KiB."""
_SAMPLE_FIELDS = (0x100, 0x200, 0x400, 0x800)
"""What a trun may state of each sample: duration, size, flags, offset; four bytes each, in this order."""
_LEAST_STALL_S = 0.001
"""What is late by less, no screen shows."""


@dataclass(frozen=True)
class Fragment:
    """The part of the video that one moof and its mdat hold."""

    start_s: float
    duration_s: float


@dataclass
class FragmentReader:
    """Reads a stream of fragmented MP4 in pieces of any size and keeps no picture of it."""

    _pending: bytearray = field(default_factory=bytearray)
    _skip: int = 0
    _ends_fragment: bool = False
    _track: _Track | None = None
    _moof: Fragment | None = None

    def feed(self, chunk: bytes) -> list[Fragment]:
        """Returns the fragments that are whole with this piece; raises ValueError for what is no MP4."""
        self._pending += chunk
        fragments = []
        while self._advance():
            if self._ends_fragment and self._skip == 0 and self._moof is not None:
                fragments.append(self._moof)
                self._moof, self._ends_fragment = None, False
        return fragments

    def _advance(self) -> bool:
        """Takes the next box, or more of the one that is skipped; says False when bytes are missing."""
        if self._skip:
            taken = min(self._skip, len(self._pending))
            del self._pending[:taken]
            self._skip -= taken
            return taken > 0 and self._skip == 0
        box = _box_at(self._pending, 0)
        if box is None:
            return False
        kind, header, size = box
        if kind not in _TOP_LEVEL:
            raise ValueError(f"a box {kind!r} where one of an MP4 should be")
        if kind not in (b"moov", b"moof"):
            self._skip, self._ends_fragment = size, kind == b"mdat"
            return True
        if size > _MAX_HEAD_BYTES:
            raise ValueError(f"a {kind.decode()} of {size} bytes; at most {_MAX_HEAD_BYTES} are read")
        if len(self._pending) < size:
            return False
        self._take_head(kind, bytes(self._pending[header:size]))
        del self._pending[:size]
        return True

    def _take_head(self, kind: bytes, content: bytes) -> None:
        if kind == b"moov":
            self._track = _picture_track(content)
        elif self._track is None:
            raise ValueError("a moof before any moov")
        else:
            self._moof = _fragment(content, self._track)


@dataclass
class Playback:
    """A player that starts with the first fragment and stands still whenever the next one is not there in time."""

    first_at_s: float | None = None
    num_fragments: int = 0
    media_s: float = 0.0
    num_stalls: int = 0
    stalled_s: float = 0.0

    def arrive(self, fragment: Fragment, at_s: float) -> None:
        """Takes a fragment that was whole at `at_s`."""
        if self.first_at_s is None:
            self.first_at_s = at_s - fragment.start_s
        late_s = at_s - (self.first_at_s + fragment.start_s + self.stalled_s)
        if late_s > _LEAST_STALL_S:
            self.num_stalls += 1
            self.stalled_s += late_s
        self.num_fragments += 1
        self.media_s = fragment.start_s + fragment.duration_s


@dataclass(frozen=True)
class _Track:
    number: int
    timescale: int
    default_duration: int


def _picture_track(moov: bytes) -> _Track:
    """Returns the track with the handler `vide`."""
    timescales: dict[int, int] = {}
    number, timescale, pictures = 0, 0, 0
    defaults: dict[int, int] = {}
    for kind, content in _leaves(moov):
        if kind == b"tkhd":
            number = _u32(content, 20 if content[0] == 1 else 12)
        elif kind == b"mdhd":
            timescale = _u32(content, 20 if content[0] == 1 else 12)
        elif kind == b"hdlr":
            timescales[number] = timescale
            pictures = number if content[8:12] == b"vide" else pictures
        elif kind == b"trex":
            defaults[_u32(content, 4)] = _u32(content, 12)
    if not timescales.get(pictures):
        raise ValueError("the moov has no track of pictures with a timescale")
    return _Track(pictures, timescales[pictures], defaults.get(pictures, 0))


def _fragment(moof: bytes, track: _Track) -> Fragment:
    number, start, duration, default = 0, 0, 0, track.default_duration
    for kind, content in _leaves(moof):
        if kind == b"tfhd":
            number, default = _u32(content, 4), _default_duration(content, track.default_duration)
        elif number == track.number and kind == b"tfdt":
            start = struct.unpack_from(">Q" if content[0] == 1 else ">I", content, 4)[0]
        elif number == track.number and kind == b"trun":
            duration += _run_duration(content, default)
    return Fragment(start / track.timescale, duration / track.timescale)


def _default_duration(tfhd: bytes, otherwise: int) -> int:
    """Returns the samples' duration that a fragment states; before it may stand an offset (8 bytes) and an index."""
    flags = _u32(tfhd, 0) & 0xFFFFFF
    return _u32(tfhd, 8 + 8 * bool(flags & 1) + 4 * bool(flags & 2)) if flags & 8 else otherwise


def _run_duration(trun: bytes, default: int) -> int:
    flags, num_samples = _u32(trun, 0) & 0xFFFFFF, _u32(trun, 4)
    if not flags & 0x100:
        return default * num_samples
    first = 8 + 4 * bool(flags & 1) + 4 * bool(flags & 4)
    stride = 4 * sum(bool(flags & field) for field in _SAMPLE_FIELDS)
    return sum(_u32(trun, first + stride * sample) for sample in range(num_samples))


def _leaves(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields kind and content of every box that holds no other boxes of interest, in order."""
    offset = 0
    while (box := _box_at(content, offset)) is not None:
        kind, header, size = box
        inside = content[offset + header : offset + size]
        if kind in _CONTAINERS:
            yield from _leaves(inside)
        else:
            yield kind, inside
        offset += size


def _box_at(content: bytes | bytearray, offset: int) -> tuple[bytes, int, int] | None:
    """Returns kind, bytes of the header and bytes of all; None while the header is not there."""
    if len(content) < offset + 8:
        return None
    size, kind = struct.unpack_from(">I4s", content, offset)
    header = 8
    if size == 1:
        if len(content) < offset + 16:
            return None
        (size,), header = struct.unpack_from(">Q", content, offset + 8), 16
    if size < header:
        raise ValueError(f"a box {kind!r} of {size} bytes: no MP4, or one of unknown length")
    return kind, header, size


def _u32(content: bytes, offset: int) -> int:
    number: int = struct.unpack_from(">I", content, offset)[0]
    return number
