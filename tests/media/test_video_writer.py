"""The fragment writer: playable at once, exact in frames and time, the same bytes each time."""

from __future__ import annotations

import hashlib
import io
import itertools
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.media.audio import SoundTrack, open_sound_track
from serve_app.media.video_writer import Sound, VideoWriter
from serve_app.planning.geometry import Size
from serve_app.schemas.config import AudioLimits, VideoEncoding

SIZE = Size(64, 64)
ENCODING = VideoEncoding()
DARK, BRIGHT = 20, 240
Probe = Callable[[Path], dict[str, dict[str, str]]]


@dataclass
class ConstantSound:
    """A sound of one value that counts what was read of it."""

    num_samples: int
    sample_rate: int = 48_000
    channels: int = 1
    value: float = 0.5
    num_read: int = 0

    def read(self, num_samples: int) -> NDArray[np.float32]:
        count = min(num_samples, self.num_samples - self.num_read)
        self.num_read += count
        return np.full((count, self.channels), self.value, dtype=np.float32)


@dataclass
class Video:
    """The segments of a written video."""

    init: bytes
    blocks: list[bytes] = field(default_factory=list)

    @property
    def whole(self) -> bytes:
        return self.init + b"".join(self.blocks)


def write_video(
    num_frames: int,
    *,
    sound: Sound | None = None,
    block: int = 12,
    flashes: frozenset[int] = frozenset(),
    encoding: VideoEncoding = ENCODING,
) -> Video:
    """Writes dark frames, bright where a flash is."""
    with VideoWriter(SIZE, sound=sound, num_frames=num_frames, encoding=encoding) as writer:
        video = Video(writer.init_segment())
        for start in range(0, num_frames, block):
            values = [BRIGHT if k in flashes else DARK for k in range(start, min(start + block, num_frames))]
            video.blocks.append(writer.write_block(gray(values)))
    return video


def gray(values: list[int]) -> NDArray[np.uint8]:
    shape = (len(values), SIZE.height, SIZE.width, 3)
    return np.broadcast_to(np.array(values, dtype=np.uint8)[:, None, None, None], shape)


def frame_levels(mp4: bytes) -> list[float]:
    with av.open(io.BytesIO(mp4)) as container:
        return [gray_level(frame) for frame in container.decode(video=0)]


def gray_level(frame: av.VideoFrame) -> float:
    """Returns the mean brightness, 0 .. 255, from the luma plane of limited range."""
    return (float(frame.to_ndarray()[: frame.height].mean()) - 16) * 255 / 219


def decode_sound(mp4: bytes) -> NDArray[np.float32]:
    """Returns the decoded sound [channels, samples]."""
    with av.open(io.BytesIO(mp4)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def flash_times(mp4: bytes) -> list[Fraction]:
    with av.open(io.BytesIO(mp4)) as container:
        frames = container.decode(video=0)
        return [frame.pts * frame.time_base for frame in frames if gray_level(frame) > (DARK + BRIGHT) / 2]


def click_times(mp4: bytes) -> list[float]:
    """Returns when each burst of sound begins, by the times in the file."""
    times: list[float] = []
    with av.open(io.BytesIO(mp4)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()).max(axis=0) > 0.3)
            if len(loud) and (not times or frame.time + loud[0] / frame.sample_rate - times[-1] > 0.5):
                times.append(frame.time + loud[0] / frame.sample_rate)
    return times


def clicks(seconds: float, sample_rate: int, channels: int, at_frames: frozenset[int]) -> NDArray[np.float32]:
    samples = np.zeros((round(seconds * sample_rate), channels), dtype=np.float32)
    for frame in at_frames:
        start = round(frame * sample_rate / 25)
        samples[start : start + sample_rate // 200] = 0.8
    return samples


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 22_050, 37_000, 44_100, 48_000])
def test_flash_and_click_stay_together_and_ffprobe_agrees(
    tmp_path: Path, ffprobe: Probe, write_wav: Callable[..., Path], sample_rate: int, channels: int
) -> None:
    events = frozenset({5, 31, 60, 99, 122})
    wav = write_wav(clicks(5, sample_rate, channels, events), sample_rate)
    with open_sound_track(wav, limits=AudioLimits()) as sound:
        mp4 = write_video(125, sound=sound, flashes=events).whole
    path = tmp_path / "a.mp4"
    path.write_bytes(mp4)
    assert [float(time) for time in flash_times(mp4)] == sorted(frame / 25 for frame in events)
    assert click_times(mp4) == pytest.approx(sorted(frame / 25 for frame in events), abs=0.002)
    probed = ffprobe(path)
    video, audio = probed["video"], probed["audio"]
    assert (video["codec_name"], video["pix_fmt"], video["r_frame_rate"]) == ("h264", "yuv420p", "25/1")
    assert (audio["codec_name"], audio["channels"]) == ("aac", channels)
    assert int(video["nb_read_frames"]) == 125
    assert (float(video["start_time"]), float(audio["start_time"])) == (0, 0)
    assert float(video["duration"]) == 5
    assert float(audio["duration"]) == pytest.approx(5, abs=0.001)


def test_ten_minutes_stay_together(tmp_path: Path, ffprobe: Probe) -> None:
    num_frames, rate = 15_000, 44_100
    events = frozenset({10, 7_777, 14_990})
    whole = clicks(num_frames / 25, rate, 1, events)
    mp4 = write_video(num_frames, sound=SoundTrack(rate, 1, iter([whole])), flashes=events).whole
    path = tmp_path / "a.mp4"
    path.write_bytes(mp4)
    expected = [frame / 25 for frame in sorted(events)]
    assert [float(time) for time in flash_times(mp4)] == expected
    assert click_times(mp4) == pytest.approx(expected, abs=0.002)
    probed = ffprobe(path)
    assert int(probed["video"]["nb_read_frames"]) == num_frames
    assert abs(float(probed["video"]["duration"]) - float(probed["audio"]["duration"])) < 0.001


@pytest.mark.parametrize("block", [1, 5, 12])
def test_every_prefix_is_playable_and_its_sound_reaches_its_end(tmp_path: Path, ffprobe: Probe, block: int) -> None:
    video = write_video(30, sound=ConstantSound(48_000 * 2), block=block)
    path = tmp_path / "prefix.mp4"
    for num_blocks in {1, 2, len(video.blocks)}:
        path.write_bytes(video.init + b"".join(video.blocks[:num_blocks]))
        num_frames = min(30, num_blocks * block)
        probed = ffprobe(path)
        assert int(probed["video"]["nb_read_frames"]) == num_frames
        sound_end = float(probed["audio"]["duration"])
        assert num_frames / 25 <= sound_end + 1e-6 < num_frames / 25 + 1024 / 48_000 + 1e-6


def test_the_init_segment_is_there_before_any_frame() -> None:
    with VideoWriter(SIZE, sound=ConstantSound(1), num_frames=12, encoding=ENCODING) as writer:
        init = writer.init_segment()
    with av.open(io.BytesIO(init)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert (container.streams.video[0].width, container.streams.video[0].height) == (64, 64)


def test_each_block_is_one_fragment_with_the_next_number_and_a_key_frame_first() -> None:
    video = write_video(36, sound=ConstantSound(10**6))
    for number, block in enumerate(video.blocks, start=1):
        assert [kind for kind, _ in boxes(block)] == [b"moof", b"mdat"]
        assert struct.unpack_from(">I", block, block.index(b"mfhd") + 8) == (number,)
    with av.open(io.BytesIO(video.whole)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert keys == [index % 12 == 0 for index in range(36)]


def test_a_block_of_many_frames_has_its_frames_in_order_without_reordering() -> None:
    with av.open(io.BytesIO(write_video(60, block=60).whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [packet.pts for packet in packets] == [packet.dts for packet in packets]


def boxes(mp4: bytes) -> Iterator[tuple[bytes, bytes]]:
    while mp4:
        num_bytes, kind = struct.unpack_from(">I4s", mp4)
        yield kind, mp4[8:num_bytes]
        mp4 = mp4[num_bytes:]


def test_blocks_hold_exactly_their_frames_whatever_their_lengths() -> None:
    lengths = [9, 1, 12, 3, 20]
    frames = gray([10 * (k % 24) for k in range(sum(lengths))])
    starts = itertools.accumulate([0, *lengths[:-1]])
    with VideoWriter(SIZE, sound=None, num_frames=len(frames), encoding=ENCODING) as writer:
        blocks = [writer.write_block(frames[start : start + n]) for start, n in zip(starts, lengths, strict=True)]
        for index, (block, length) in enumerate(zip(blocks, lengths, strict=True)):
            assert len(frame_levels(writer.init_segment() + block)) == length, f"block {index} alone"
        levels = frame_levels(writer.init_segment() + b"".join(blocks))
    assert levels == pytest.approx([10 * (k % 24) for k in range(len(frames))], abs=2)


def test_a_short_sound_is_continued_by_silence() -> None:
    mp4 = write_video(50, sound=ConstantSound(48_000)).whole
    sound = decode_sound(mp4)[0]
    assert np.abs(sound[4_800:43_200] - 0.5).max() < 0.05
    assert np.abs(sound[50_400:]).max() < 0.01
    assert len(sound) >= 96_000


def test_a_long_sound_is_cut_at_the_end_of_the_video() -> None:
    sound = ConstantSound(10**7, channels=2)
    mp4 = write_video(25, sound=sound).whole
    assert sound.num_read == 48_000
    with av.open(io.BytesIO(mp4)) as container:
        last = [packet for packet in container.demux(audio=0) if packet.size][-1]
    assert last.pts is not None
    assert last.duration is not None
    assert last.pts + last.duration == 48_000


def test_the_sound_is_read_only_a_little_ahead_of_the_picture() -> None:
    sound = ConstantSound(10**7)
    with VideoWriter(SIZE, sound=sound, num_frames=15_000, encoding=ENCODING) as writer:
        for block in range(1, 6):
            writer.write_block(gray([DARK] * 12))
            assert sound.num_read <= block * 12 * 1_920 + 4 * 1024


def test_without_sound_there_is_only_a_picture_track(tmp_path: Path, ffprobe: Probe) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(write_video(25).whole)
    probed = ffprobe(path)
    assert "audio" not in probed
    assert int(probed["video"]["nb_read_frames"]) == 25


@pytest.mark.parametrize("rgb", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (180, 120, 90)])
def test_colors_are_bt709_limited_in_tags_and_in_values(
    tmp_path: Path, ffprobe: Probe, rgb: tuple[int, int, int]
) -> None:
    frames = np.broadcast_to(np.array(rgb, dtype=np.uint8), (2, SIZE.height, SIZE.width, 3))
    with VideoWriter(SIZE, sound=None, num_frames=2, encoding=ENCODING) as writer:
        mp4 = writer.init_segment() + writer.write_block(frames)
    path = tmp_path / "a.mp4"
    path.write_bytes(mp4)
    video = ffprobe(path)["video"]
    tags = [video[key] for key in ("color_range", "color_space", "color_transfer", "color_primaries")]
    assert tags == ["tv", "bt709", "bt709", "bt709"]
    with av.open(io.BytesIO(mp4)) as container:
        planes = next(container.decode(video=0)).to_ndarray()
    luma, cb, cr = planes[:64].mean(), planes[64:80].mean(), planes[80:].mean()
    assert (luma, cb, cr) == pytest.approx(bt709(*rgb), abs=1.5)


def bt709(red: int, green: int, blue: int) -> tuple[float, float, float]:
    """Returns Y, Cb, Cr of 8-bit RGB by ITU-R BT.709, limited range."""
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    cb, cr = (blue - luma) / 1.8556, (red - luma) / 1.5748
    return 16 + luma * 219 / 255, 128 + cb * 224 / 255, 128 + cr * 224 / 255


DIGEST_PROGRAM = """
import hashlib, sys
import numpy as np
from serve_app.media.audio import SoundTrack
from serve_app.media.video_writer import VideoWriter
from serve_app.planning.geometry import Size
from serve_app.schemas.config import VideoEncoding
random = np.random.default_rng(1)
sound = SoundTrack(44100, 2, iter([random.uniform(-0.5, 0.5, (60000, 2)).astype(np.float32)]))
digest = hashlib.sha256()
with VideoWriter(Size(128, 64), sound=sound, num_frames=30, encoding=VideoEncoding()) as writer:
    digest.update(writer.init_segment())
    for _ in range(3):
        digest.update(writer.write_block(random.integers(0, 256, (10, 64, 128, 3), dtype=np.uint8)))
sys.stdout.write(digest.hexdigest())
"""


def test_two_processes_write_the_same_bytes() -> None:
    root = Path(__file__).parents[2]
    run = [sys.executable, "-c", DIGEST_PROGRAM]
    digests = {subprocess.run(run, capture_output=True, text=True, check=True, cwd=root).stdout for _ in range(2)}
    assert len(digests) == 1
    assert len(digests.pop()) == 64


def test_the_same_video_twice_in_one_process_has_the_same_bytes() -> None:
    digests = {hashlib.sha256(write_video(24, sound=ConstantSound(10**6)).whole).digest() for _ in range(2)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 64, 64, 3), dtype=np.float32), "float32"),
        (np.zeros((2, 64, 62, 3), dtype=np.uint8), r"\[2, 64, 62, 3\]"),
        (np.zeros((64, 64, 3), dtype=np.uint8), r"\[64, 64, 3\]"),
        (np.zeros((0, 64, 64, 3), dtype=np.uint8), r"\[0, 64, 64, 3\]"),
        (np.zeros((2, 64, 64, 4), dtype=np.uint8), r"\[2, 64, 64, 4\]"),
        (np.zeros((13, 64, 64, 3), dtype=np.uint8), "13 frames after 0 are 13; the video has 12"),
    ],
)
def test_wrong_frames_are_refused_with_their_numbers(frames: NDArray[np.uint8], message: str) -> None:
    writer = VideoWriter(SIZE, sound=None, num_frames=12, encoding=ENCODING)
    with writer, pytest.raises(ValueError, match=message):
        writer.write_block(frames)


def test_frames_beyond_the_end_are_refused_with_their_numbers() -> None:
    with VideoWriter(SIZE, sound=None, num_frames=12, encoding=ENCODING) as writer:
        writer.write_block(gray([DARK] * 12))
        with pytest.raises(ValueError, match="1 frames after 12 are 13; the video has 12"):
            writer.write_block(gray([DARK]))


@pytest.mark.parametrize(("size", "num_frames"), [(Size(63, 64), 1), (Size(64, 63), 1), (Size(64, 64), 0)])
def test_an_impossible_video_is_refused(size: Size, num_frames: int) -> None:
    with pytest.raises(ValueError, match=r"63|num_frames is 0"):
        VideoWriter(size, sound=None, num_frames=num_frames, encoding=ENCODING)


def test_the_last_frame_of_a_short_last_block_is_kept() -> None:
    levels = frame_levels(write_video(13, flashes=frozenset({12})).whole)
    assert len(levels) == 13
    assert levels[-1] > 200
