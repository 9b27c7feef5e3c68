"""Voices: what is read, what is refused, what the model and the video get of them."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from serve_app.errors import InputNotFoundError, UnsupportedMediaError
from serve_app.media.audio import open_sound_track, read_speech, to_model_rate, track_rate
from serve_app.schemas.config import AudioLimits

LIMITS = AudioLimits()
Samples = NDArray[np.float32]
Tone = Callable[[float, int], Samples]


def correlation(left: Samples, right: Samples) -> float:
    num_samples = min(len(left), len(right))
    return float(np.corrcoef(left[:num_samples], right[:num_samples])[0, 1])


@pytest.mark.parametrize(
    ("codec", "name", "tolerance"),
    [
        ("pcm_s16le", "a.wav", 0),
        ("pcm_u8", "a.wav", 0),
        ("pcm_s24le", "a.wav", 0),
        ("pcm_f32le", "a.wav", 0),
        ("pcm_f64le", "a.wav", 0),
        ("pcm_s16be", "a.aiff", 0),
        ("flac", "a.flac", 0),
        ("libmp3lame", "a.mp3", 0),
        ("aac", "a.m4a", 0),
        ("aac", "a.mp4", 0),
        ("libopus", "a.opus", 0),
        ("libopus", "a.webm", 960),
        ("aac", "a.aac", 2048),
    ],
)
def test_every_kind_gives_the_same_voice_without_delay(
    encode_sound: Callable[..., Path], tone: Tone, codec: str, name: str, tolerance: int
) -> None:
    samples = tone(1.5, 48_000)
    speech = read_speech(encode_sound(samples, 48_000, codec=codec, name=name), limits=LIMITS)
    assert (speech.sample_rate, speech.channels) == (48_000, 1)
    assert abs(speech.num_samples - len(samples)) <= tolerance
    assert len(speech.samples) == math.ceil(speech.num_samples / 3)
    # One sample of delay at 16 kHz costs more than that; raw AAC states no delay to take away.
    if name != "a.aac":
        assert correlation(speech.samples, to_model_rate(iter((samples[:, 0],)), sample_rate=48_000)) > 0.995


def test_vorbis_is_read(encode_sound: Callable[..., Path], tone: Tone) -> None:
    samples = np.repeat(tone(1.5, 48_000), 2, axis=1)
    path = encode_sound(samples, 48_000, codec="vorbis", name="a.ogg", layout="stereo")
    speech = read_speech(path, limits=LIMITS)
    assert speech.channels == 2
    assert speech.seconds == pytest.approx(1.5, abs=0.03)
    assert correlation(speech.samples, to_model_rate(iter((samples[:, 0],)), sample_rate=48_000)) > 0.95


@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 16_000, 22_050, 37_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("num_samples", [5_000, 24_001])
def test_the_model_gets_16_khz_rounded_up(
    write_wav: Callable[..., Path], tone: Tone, sample_rate: int, num_samples: int
) -> None:
    samples = tone(4, sample_rate)[:num_samples]
    speech = read_speech(write_wav(samples, sample_rate), limits=AudioLimits(min_seconds=0.01))
    assert speech.num_samples == len(samples)
    assert len(speech.samples) == math.ceil(len(samples) * 16_000 / sample_rate)
    assert speech.samples.dtype == np.float32


def test_reading_in_chunks_changes_no_sample(write_wav: Callable[..., Path], tone: Tone) -> None:
    speech = read_speech(write_wav(tone(2, 44_100), 44_100), limits=LIMITS)
    rounded = (np.rint(tone(2, 44_100)[:, 0] * 32767) / 32768).astype(np.float32)
    assert np.array_equal(speech.samples, to_model_rate(iter((rounded,)), sample_rate=44_100))


def test_16_khz_stays_as_it_is(write_wav: Callable[..., Path]) -> None:
    samples = np.linspace(-1, 1, 8_000, dtype=np.float32)
    speech = read_speech(write_wav(samples, 16_000), limits=LIMITS)
    assert np.array_equal(speech.samples, (np.rint(samples * 32767) / 32768).astype(np.float32))


def test_the_model_hears_the_mean_of_the_channels(write_wav: Callable[..., Path]) -> None:
    channels = np.tile(np.array([0.75, -0.25, 0.1, 0.2], dtype=np.float32), (8_000, 1))
    speech = read_speech(write_wav(channels, 16_000), limits=LIMITS)
    assert speech.channels == 4
    assert speech.samples == pytest.approx(0.2, abs=1e-4)


def test_the_sound_of_a_video_file_is_read(tmp_path: Path, tone: Tone) -> None:
    path = write_video(tmp_path, tone(1, 48_000))
    assert read_speech(path, limits=LIMITS).num_samples == 48_000


def write_video(folder: Path, samples: Samples | None) -> Path:
    path = folder / "clip.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, width=64, height=64)
        audio = None if samples is None else container.add_stream("aac", rate=48_000, layout="mono")
        for index in range(25):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype=np.uint8))
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None and samples is not None:
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 48_000, 0, Fraction(1, 48_000)
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMediaError, match="no audio stream"):
        read_speech(write_video(tmp_path, None), limits=LIMITS)


@pytest.mark.parametrize(
    ("codec", "name", "share"),
    [
        ("pcm_s16le", "a.wav", 0.5),
        ("pcm_s16le", "a.wav", 0.9),
        ("pcm_s16le", "a.wav", 0.001),
        ("flac", "a.flac", 0.5),
        ("flac", "a.flac", 0.9),
        ("libmp3lame", "a.mp3", 0.5),
        ("aac", "a.m4a", 0.5),
        ("aac", "a.m4a", 0.95),
        ("aac", "a.aac", 0.5),
    ],
)
def test_a_cut_file_is_refused(
    encode_sound: Callable[..., Path], tone: Tone, codec: str, name: str, share: float
) -> None:
    path = encode_sound(tone(2, 44_100), 44_100, codec=codec, name=name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnsupportedMediaError) as caught:
        read_speech(path, limits=LIMITS)
    assert caught.value.param == "audio"
    assert caught.value.remedy


def test_a_wav_that_promises_more_than_it_has_is_refused_with_both_lengths(
    write_wav: Callable[..., Path], tone: Tone
) -> None:
    path = write_wav(tone(2, 16_000), 16_000)
    path.write_bytes(path.read_bytes()[: 44 + 32_000])
    with pytest.raises(UnsupportedMediaError, match=r"promises 2\.00 s of sound but has 1\.00 s"):
        read_speech(path, limits=LIMITS)


@pytest.mark.parametrize("stated_bytes", [0, 0xFFFF_FFFF, 0x7FFF_FFFF])
def test_a_wav_from_a_pipe_states_no_length_and_is_read(
    write_wav: Callable[..., Path], tone: Tone, stated_bytes: int
) -> None:
    path = write_wav(tone(1, 16_000), 16_000)
    content = bytearray(path.read_bytes())
    content[40:44] = stated_bytes.to_bytes(4, "little")
    path.write_bytes(content)
    assert read_speech(path, limits=LIMITS).num_samples == 16_000


def test_a_title_that_is_no_utf_8_does_no_harm(write_wav: Callable[..., Path], tone: Tone) -> None:
    path = write_wav(tone(1, 16_000), 16_000)
    title = b"INFOINAM\x04\0\0\0\xe9\xff\xfe\0"
    content = bytearray(path.read_bytes() + b"LIST" + len(title).to_bytes(4, "little") + title)
    content[4:8] = (len(content) - 8).to_bytes(4, "little")
    path.write_bytes(content)
    assert read_speech(path, limits=LIMITS).num_samples == 16_000


@pytest.mark.parametrize("junk", [b"TAG" + bytes(125), bytes(900), b"text " * 180])
def test_foreign_bytes_after_the_end_of_an_mp3_do_no_harm(
    encode_sound: Callable[..., Path], tone: Tone, junk: bytes
) -> None:
    path = encode_sound(tone(2, 44_100), 44_100, codec="libmp3lame", name="a.mp3")
    path.write_bytes(path.read_bytes() + junk)
    assert read_speech(path, limits=LIMITS).seconds == pytest.approx(2, abs=0.03)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        bytes(4_000),
        b"RIFF\x24\0\0\0WAVE",
        b"ID3\x04\0\0\0\0\0\0",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\nvoice.wav\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile voice.wav\n",
    ],
)
def test_what_is_no_sound_is_refused_and_names_no_other_file(
    tmp_path: Path, write_wav: Callable[..., Path], tone: Tone, content: bytes
) -> None:
    write_wav(tone(1, 16_000), 16_000)
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(UnsupportedMediaError):
        read_speech(path, limits=LIMITS)


def test_a_picture_is_no_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(UnsupportedMediaError):
        read_speech(path, limits=LIMITS)


def test_a_wav_without_samples_is_refused(write_wav: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedMediaError, match="no samples"):
        read_speech(write_wav(np.zeros(0, dtype=np.float32), 16_000), limits=LIMITS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(encode_sound: Callable[..., Path], value: float) -> None:
    samples = np.full((8_000, 1), value, dtype=np.float32)
    with pytest.raises(UnsupportedMediaError, match="not numbers"):
        read_speech(encode_sound(samples, 16_000, codec="pcm_f32le", name="a.wav"), limits=LIMITS)


def test_samples_beyond_full_scale_are_clipped(encode_sound: Callable[..., Path]) -> None:
    samples = np.full((16_000, 1), -40, dtype=np.float32)
    speech = read_speech(encode_sound(samples, 48_000, codec="pcm_f32le", name="a.wav"), limits=LIMITS)
    assert -1.2 < speech.samples.min() < -1  # beside the steep edge the filter overshoots
    assert np.median(speech.samples) == pytest.approx(-1, abs=1e-3)
    assert speech.peak == 1


def test_what_cannot_be_read_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.wav", tmp_path, Path("a\0b.wav")):
        with pytest.raises(InputNotFoundError):
            read_speech(path, limits=LIMITS)


def test_a_voice_below_the_least_length_is_refused(write_wav: Callable[..., Path], tone: Tone) -> None:
    with pytest.raises(UnsupportedMediaError, match=r"0\.100 s of sound; at least 0\.2 s"):
        read_speech(write_wav(tone(0.1, 16_000), 16_000), limits=LIMITS)


def test_a_voice_beyond_the_greatest_length_is_refused_before_the_rest_is_decoded(
    write_wav: Callable[..., Path], tone: Tone
) -> None:
    path = write_wav(tone(4, 16_000), 16_000)
    # The file is also cut, which would be told if it were read to its end.
    path.write_bytes(path.read_bytes()[:-10_000])
    with pytest.raises(UnsupportedMediaError, match="longer than 2 s"):
        read_speech(path, limits=AudioLimits(max_seconds=2))


def test_a_file_with_too_many_bytes_is_refused(write_wav: Callable[..., Path], tone: Tone) -> None:
    with pytest.raises(UnsupportedMediaError, match="allowed are 1000"):
        read_speech(write_wav(tone(1, 16_000), 16_000), limits=AudioLimits(max_bytes=1000))


@pytest.mark.parametrize(
    ("samples", "peak", "rms", "is_clipped"),
    [
        (np.zeros(16_000), 0, 0, False),
        (np.full(16_000, 0.5), 0.5, 0.5, False),
        (np.sin(np.arange(16_000) * 0.2), 1, math.sqrt(0.5), False),
        (np.clip(2 * np.sin(np.arange(16_000) * 0.2), -1, 1), 1, 0.9, True),
    ],
    ids=["silence", "constant", "loud but whole", "clipped"],
)
def test_measures_how_loud_and_how_clipped_a_voice_is(
    write_wav: Callable[..., Path], samples: Samples, peak: float, rms: float, *, is_clipped: bool
) -> None:
    speech = read_speech(write_wav(samples, 16_000), limits=LIMITS)
    assert speech.peak == pytest.approx(peak, abs=1e-3)
    assert speech.rms == pytest.approx(rms, abs=0.02)
    assert (speech.clipped_share > 0.1) == is_clipped


@settings(max_examples=20, deadline=None)
@given(sample_rate=st.integers(4_000, 192_000), num_samples=st.integers(1, 3_000))
def test_the_length_at_the_model_rate_is_exact_for_any_rate(sample_rate: int, num_samples: int) -> None:
    resampled = to_model_rate(iter((np.ones(num_samples, dtype=np.float32),)), sample_rate=sample_rate)
    assert len(resampled) == math.ceil(num_samples * 16_000 / sample_rate)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (8_000, 48_000),
        (11_025, 44_100),
        (16_000, 48_000),
        (22_050, 44_100),
        (24_000, 48_000),
        (32_000, 32_000),
        (37_000, 48_000),
        (44_100, 44_100),
        (48_000, 48_000),
        (96_000, 96_000),
        (192_000, 48_000),
    ],
)
def test_the_track_keeps_a_rate_of_32_khz_and_more_that_aac_has(source: int, expected: int) -> None:
    assert track_rate(source) == expected


@pytest.mark.parametrize("step", [1, 999, 1024, 100_000])
def test_the_track_gives_every_sample_once_in_steps_of_any_size(
    write_wav: Callable[..., Path], tone: Tone, step: int
) -> None:
    stereo = np.repeat(tone(0.25, 44_100), 2, axis=1) * (1, -0.5)
    parts = []
    with open_sound_track(write_wav(stereo, 44_100), limits=LIMITS) as track:
        assert (track.sample_rate, track.channels) == (44_100, 2)
        while len(part := track.read(step)):
            parts.append(part)
        assert len(track.read(step)) == 0
    assert np.abs(np.concatenate(parts) - stereo).max() < 1e-4


def test_the_track_of_an_odd_rate_keeps_its_length(write_wav: Callable[..., Path], tone: Tone) -> None:
    with open_sound_track(write_wav(tone(1, 37_000), 37_000), limits=LIMITS) as track:
        assert abs(len(track.read(10**6)) - 48_000) <= 1


def test_more_than_two_channels_are_mixed_to_left_and_right(encode_sound: Callable[..., Path]) -> None:
    # 5.1: front left, front right, centre, bass, back left, back right.
    surround = np.tile(np.array([0.8, 0.0, 0.0, 0.0, 0.8, 0.0], dtype=np.float32), (9_600, 1))
    path = encode_sound(surround, 48_000, codec="pcm_s16le", name="a.wav", layout="5.1")
    with open_sound_track(path, limits=LIMITS) as track:
        mixed = track.read(9_600)
    assert track.channels == 2
    assert mixed[:, 0].mean() == pytest.approx(0.8 * 2 / (2 + 2 * math.sqrt(0.5)), abs=1e-3)
    assert np.abs(mixed[:, 1]).max() < 1e-3


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le", "flac", "aac", "libopus"])
def test_more_channels_than_can_be_read_safely_are_refused(encode_sound: Callable[..., Path], codec: str) -> None:
    path = encode_sound(np.zeros((9_600, 8), dtype=np.float32), 48_000, codec=codec, name="a.mkv", layout="7.1")
    with pytest.raises(UnsupportedMediaError, match="has 8 channels; allowed are up to 7; mix it down"):
        read_speech(path, limits=LIMITS)


@pytest.mark.parametrize(
    ("labels", "named"), [((2, 1), r"2 channels \(FR\+FL\)"), ((1, 1), r"2 channels \(FL\+FL\)"), ((0, 0), "UNSD")]
)
def test_channels_in_an_order_of_their_own_are_refused_and_the_process_lives(
    encode_sound: Callable[..., Path], labels: tuple[int, int], named: str
) -> None:
    path = encode_sound(
        np.zeros((9_600, 2), dtype=np.float32), 48_000, codec="pcm_s16le", name="a.caf", layout="stereo"
    )
    whole = path.read_bytes()
    start = whole.index(b"chan")
    (num_bytes,) = struct.unpack_from(">Q", whole, start + 4)
    described = b"".join(struct.pack(">II12x", label, 0) for label in labels)
    chunk = b"chan" + struct.pack(">Q", 12 + len(described)) + struct.pack(">III", 0, 0, len(labels)) + described
    path.write_bytes(whole[:start] + chunk + whole[start + 12 + num_bytes :])
    with pytest.raises(UnsupportedMediaError, match=rf"unusual order of channels, .*{named}"):
        read_speech(path, limits=LIMITS)


@pytest.mark.parametrize("layout", ["mono", "stereo", "2.1", "quad(side)", "5.1(side)", "6.1(back)"])
def test_usual_layouts_are_read(encode_sound: Callable[..., Path], layout: str) -> None:
    num_channels = av.AudioLayout(layout).nb_channels
    samples = np.zeros((9_600, num_channels), dtype=np.float32)
    path = encode_sound(samples, 48_000, codec="pcm_s16le", name="a.wav", layout=layout)
    assert read_speech(path, limits=LIMITS).channels == num_channels


def test_a_packet_of_a_stream_that_the_header_does_not_list_is_damage(
    encode_sound: Callable[..., Path], tone: Tone
) -> None:
    path = encode_sound(tone(8, 48_000), 48_000, codec="aac", name="a.flv")
    damaged = bytearray(path.read_bytes())
    # A packet near the end, behind all that is read for a first look, says that it is video.
    start = damaged.rindex(b"\xaf\x01", 0, len(damaged) * 3 // 4) - 11
    assert damaged[start] == 8
    damaged[start] = 9
    path.write_bytes(damaged)
    with pytest.raises(UnsupportedMediaError, match=r"is damaged after [\d.]+ s \(list index"):
        read_speech(path, limits=LIMITS)


def test_seven_channels_are_read(encode_sound: Callable[..., Path]) -> None:
    samples = np.full((9_600, 7), 0.25, dtype=np.float32)
    path = encode_sound(samples, 16_000, codec="pcm_s16le", name="a.wav", layout="6.1")
    assert read_speech(path, limits=LIMITS).samples.max() == pytest.approx(0.25, abs=1e-3)


def test_the_track_closes_its_file(write_wav: Callable[..., Path], tone: Tone) -> None:
    path = write_wav(tone(1, 16_000), 16_000)
    before = set(Path("/proc/self/fd").iterdir())
    with open_sound_track(path, limits=LIMITS) as track:
        track.read(100)
    assert set(Path("/proc/self/fd").iterdir()) == before
