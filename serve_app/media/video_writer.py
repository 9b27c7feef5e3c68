"""Writes a video as fragments of MP4: each block can be played at once, and all of them joined are the file.

The encoders live as long as the video. Each block gets a muxer of its own that is thrown away after it: only so
does FFmpeg finish a fragment at the end of the block, neither a packet earlier nor a block later.
"""

from __future__ import annotations

import io
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from types import TracebackType
from typing import Protocol, Self, TypeVar

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from serve_app.planning.geometry import FPS, Size
from serve_app.schemas.config import VideoEncoding

AAC_FRAME_SAMPLES = 1024
VIDEO_TIMESCALE = 12_800
FRAME_TIME = Fraction(1, FPS)
# frag_discont: a fragment states its own time instead of following the one before, which this muxer never saw.
# No edit lists: they would have to be known before the first packet.
_MUXER_OPTIONS = {
    "movflags": "empty_moov+default_base_moof+frag_custom+frag_discont+skip_trailer",
    "use_editlist": "0",
    "avoid_negative_ts": "disabled",
    "video_track_timescale": str(VIDEO_TIMESCALE),
    # Keeps FFmpeg's version and the time out of the file.
    "fflags": "+bitexact",
}
# Exact rounding: without it the result depends on the processor.
_SCALER = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND | Interpolation.BITEXACT

_StreamT = TypeVar("_StreamT", VideoStream, AudioStream)


class Sound(Protocol):
    """What a writer asks of a sound: mono or stereo at a rate that AAC has (`audio.SoundTrack` is one)."""

    @property
    def sample_rate(self) -> int: ...
    @property
    def channels(self) -> int: ...
    def read(self, num_samples: int) -> NDArray[np.float32]:
        """Returns the next float32 [num_samples, channels]; fewer, then none, once the sound is over."""
        ...


class VideoWriter:
    """Encodes one video of `num_frames` frames at 25 per second, block by block: H.264, and AAC where there is sound.

    `init_segment()` followed by any number of blocks, in order, is a playable MP4. A sound that is shorter than
    the video is continued by silence, a longer one is cut. The same input gives the same bytes.
    """

    def __init__(self, size: Size, *, sound: Sound | None, num_frames: int, encoding: VideoEncoding) -> None:
        if size.width % 2 or size.height % 2:
            raise ValueError(f"size {size} has an odd side; H.264 with 4:2:0 colour needs even ones")
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; a video has at least 1")
        self._size = size
        self._num_frames = num_frames
        self._num_blocks = 0
        self._closing = ExitStack()
        head = _Muxer(sequence_number=1)
        self._closing.enter_context(head.container)
        self._pictures = _PictureEncoder(head.container, size, encoding)
        self._sound = None if sound is None else _SoundEncoder(head.container, sound, num_frames, encoding)
        self._init_segment = head.header()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def init_segment(self) -> bytes:
        """Returns the start of the file (ftyp and moov); known before the first frame."""
        return self._init_segment

    def write_block(self, frames: NDArray[np.uint8]) -> bytes:
        """Returns the fragment (moof and mdat) of uint8 RGB `frames` [T, height, width, 3], T >= 1.

        It starts with a key frame and holds exactly these frames and the sound that starts before their end. Raises
        ValueError for another shape or type and for more frames than the video has.
        """
        self._check(frames)
        pictures = self._pictures.encode(frames)
        end = self._pictures.num_frames * FRAME_TIME
        sounds = [] if self._sound is None else self._sound.packets_before(end)
        self._num_blocks += 1
        return self._fragment(pictures, sounds)

    def _check(self, frames: NDArray[np.uint8]) -> None:
        picture = (self._size.height, self._size.width, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != picture or len(frames) == 0:
            raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}; needed are uint8 [T >= 1, *{picture}]")
        total = self._pictures.num_frames + len(frames)
        if total > self._num_frames:
            raise ValueError(
                f"{len(frames)} frames after {self._pictures.num_frames} are {total}; the video has {self._num_frames}"
            )

    def _fragment(self, pictures: list[Packet[VideoStream]], sounds: list[Packet[AudioStream]]) -> bytes:
        muxer = _Muxer(sequence_number=self._num_blocks)
        with muxer.container:
            muxer.add(self._pictures.stream, pictures)
            if self._sound is not None:
                muxer.add(self._sound.stream, sounds)
            muxer.write()
        return muxer.fragment()


class _Muxer:
    """An FFmpeg muxer for one fragment, writing to memory."""

    def __init__(self, *, sequence_number: int) -> None:
        self._buffer = io.BytesIO()
        self._packets: list[Packet[VideoStream] | Packet[AudioStream]] = []
        options = {**_MUXER_OPTIONS, "fragment_index": str(sequence_number)}
        self.container: OutputContainer = av.open(self._buffer, "w", format="mp4", container_options=options)

    def header(self) -> bytes:
        """Opens the encoders of the streams; returns ftyp and moov."""
        self.container.start_encoding()
        return self._buffer.getvalue()

    def add(self, template: _StreamT, packets: list[Packet[_StreamT]]) -> None:
        """Adds a track like `template` and what it holds."""
        stream = self.container.add_stream_from_template(template)
        for packet in packets:
            packet.stream = stream
        self._packets += packets

    def write(self) -> None:
        self.container.start_encoding()
        self.container.mux(self._packets)

    def fragment(self) -> bytes:
        """Returns what the closed muxer wrote behind its own ftyp and moov."""
        whole = self._buffer.getvalue()
        start = next(offset for kind, offset in _boxes(whole) if kind == b"moof")
        return whole[start:]


def _boxes(mp4: bytes) -> Iterator[tuple[bytes, int]]:
    """Yields kind and offset of each top-level box."""
    offset = 0
    while offset < len(mp4):
        num_bytes, kind = struct.unpack_from(">I4s", mp4, offset)
        yield kind, offset
        offset += num_bytes


class _PictureEncoder:
    """H.264 without delay: every frame's packet comes out at once."""

    def __init__(self, container: OutputContainer, size: Size, encoding: VideoEncoding) -> None:
        # zerolatency: no B-frames, no look-ahead, threads share a frame instead of delaying it.
        options = {"preset": encoding.preset, "crf": str(encoding.crf), "tune": "zerolatency", "forced-idr": "1"}
        self.stream = container.add_stream("libx264", rate=FPS, options=options, width=size.width, height=size.height)
        context = self.stream.codec_context
        context.time_base = FRAME_TIME
        context.thread_count = encoding.threads
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        self._reformatter = VideoReformatter()
        self.num_frames = 0

    def encode(self, frames: NDArray[np.uint8]) -> list[Packet[VideoStream]]:
        """Returns one packet per frame [height, width, 3]; the first is a key frame that later ones start from."""
        packets = []
        for index, rgb in enumerate(frames):
            picture = self._to_yuv(rgb)
            picture.pts, picture.time_base = self.num_frames, FRAME_TIME
            picture.pict_type = PictureType.I if index == 0 else PictureType.NONE
            self.num_frames += 1
            packets += self.stream.encode(picture)
        if len(packets) != len(frames):
            raise RuntimeError(f"{len(packets)} packets for {len(frames)} frames: the encoder delays")
        return packets

    def _to_yuv(self, rgb: NDArray[np.uint8]) -> av.VideoFrame:
        return self._reformatter.reformat(
            av.VideoFrame.from_ndarray(rgb, format="rgb24"),
            format="yuv420p",
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=_SCALER,
            threads=1,
        )


class _SoundEncoder:
    """AAC up to the end of the video, a few packets ahead of the picture: AAC needs samples that come later.

    The encoder's first packet lies before t = 0 and is dropped, since a fragment cannot state negative times:
    the frame after it (1024 samples) starts softly.
    """

    def __init__(self, container: OutputContainer, sound: Sound, num_frames: int, encoding: VideoEncoding) -> None:
        self._sound = sound
        self._layout = {1: "mono", 2: "stereo"}[sound.channels]
        self._num_samples = round(num_frames * FRAME_TIME * sound.sample_rate)
        self._num_encoded = 0
        self._ready: deque[Packet[AudioStream]] = deque()
        self.stream = container.add_stream(
            "aac", rate=sound.sample_rate, layout=self._layout, bit_rate=encoding.audio_bit_rate
        )
        self.stream.codec_context.flags |= av.codec.context.Flags.bitexact

    def packets_before(self, end: Fraction) -> list[Packet[AudioStream]]:
        """Returns the packets that start before `end` seconds and were not returned yet."""
        end_sample = end * self._sound.sample_rate
        while self._num_encoded < self._num_samples and not self._reaches(end_sample):
            self._encode_next()
        packets = []
        while self._ready and _start(self._ready[0]) < end_sample:
            packets.append(self._ready.popleft())
        return packets

    def _reaches(self, sample: Fraction) -> bool:
        return bool(self._ready) and _start(self._ready[-1]) >= sample

    def _encode_next(self) -> None:
        num_samples = min(AAC_FRAME_SAMPLES, self._num_samples - self._num_encoded)
        samples = self._sound.read(num_samples)
        padded = np.pad(samples, ((0, num_samples - len(samples)), (0, 0)))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(padded.T), format="fltp", layout=self._layout)
        frame.sample_rate = self._sound.sample_rate
        frame.pts, frame.time_base = self._num_encoded, Fraction(1, self._sound.sample_rate)
        self._num_encoded += num_samples
        self._keep(self.stream.encode(frame))
        if self._num_encoded == self._num_samples:
            self._keep(self.stream.encode(None))

    def _keep(self, packets: list[Packet[AudioStream]]) -> None:
        self._ready.extend(packet for packet in packets if _start(packet) >= 0)


def _start(packet: Packet[AudioStream]) -> int:
    """Returns a sound packet's first sample."""
    if packet.pts is None:
        raise RuntimeError("the sound encoder made a packet without a time")
    return packet.pts
