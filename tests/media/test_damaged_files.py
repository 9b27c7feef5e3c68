"""Files with damaged bytes, of every kind that is read: a picture or a sound, or a clear error."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from serve_app.errors import UnsupportedMediaError
from serve_app.media.audio import open_sound_track, read_speech
from serve_app.media.image import load_portrait
from serve_app.schemas.config import AudioLimits, ImageLimits

PICTURES = {
    "PNG": ("RGB", "PNG", {}),
    "PNG with alpha": ("RGBA", "PNG", {}),
    "PNG with palette": ("P", "PNG", {"transparency": 3}),
    "PNG of 16 bits": ("I;16", "PNG", {}),
    "JPEG": ("RGB", "JPEG", {}),
    "progressive JPEG": ("RGB", "JPEG", {"progressive": True}),
    "CMYK JPEG": ("CMYK", "JPEG", {}),
    "WebP": ("RGB", "WEBP", {}),
    "lossless WebP": ("RGBA", "WEBP", {"lossless": True}),
    "BMP": ("RGB", "BMP", {}),
    "TIFF": ("RGB", "TIFF", {}),
    "deflated TIFF": ("RGB", "TIFF", {"compression": "tiff_deflate"}),
    "LZW TIFF": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "GIF": ("P", "GIF", {}),
}
SOUNDS = {
    "wav": "pcm_s16le",
    "aiff": "pcm_s16be",
    "au": "pcm_s16be",
    "caf": "pcm_s16le",
    "w64": "pcm_f32le",
    "flac": "flac",
    "mp3": "libmp3lame",
    "aac": "aac",
    "m4a": "aac",
    "mp4": "aac",
    "mov": "pcm_s16le",
    "opus": "libopus",
    "ogg": "flac",
    "webm": "libopus",
    "mkv": "aac",
    "avi": "pcm_s16le",
    "flv": "aac",
    "ts": "aac",
    "asf": "pcm_s16le",
    "ac3": "ac3",
    "eac3": "eac3",
    "wv": "wavpack",
}
RATE = 48_000

Damage = Callable[[bytes], bytes]


def damages() -> st.SearchStrategy[Damage]:
    """Up to three splices, anywhere but more often at the front, where the headers are; each may take bytes away."""
    splice = st.tuples(st.floats(0, 1) | st.floats(0, 0.02), st.binary(max_size=12), st.integers(0, 12))

    def damage(splices: list[tuple[float, bytes, int]]) -> Damage:
        def apply(whole: bytes) -> bytes:
            for position, noise, taken in splices:
                start = int(position * len(whole))
                whole = whole[:start] + noise + whole[start + taken :]
            return whole

        return apply

    return st.lists(splice, min_size=1, max_size=3).map(damage)


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    noise = np.random.default_rng(7).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    written = {}
    for name, (mode, kind, options) in PICTURES.items():
        picture = Image.fromarray(noise)
        buffer = io.BytesIO()
        (picture.convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)).save(buffer, kind, **options)
        written[name] = buffer.getvalue()
    return written


@pytest.mark.parametrize("name", PICTURES)
@settings(max_examples=30, deadline=None)
@given(damage=damages())
def test_a_damaged_picture_is_a_picture_or_a_clear_error(
    pictures: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, name: str, damage: Damage
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged picture"
    path.write_bytes(damage(pictures[name]))
    try:
        assert load_portrait(path, limits=ImageLimits()).shape[2] == 3
    except UnsupportedMediaError as error:
        assert (error.param, bool(error.remedy)) == ("image", True)  # noqa: PT017


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sounds")
    return {name: encoded(folder / f"voice.{name}", codec) for name, codec in SOUNDS.items()}


def encoded(path: Path, codec: str) -> bytes:
    """Returns half a second of a tone in any container."""
    samples = (0.5 * np.sin(np.arange(RATE // 2) / 20)).astype(np.float32)[None]
    with av.open(
        str(path), "w", format={"m4a": "ipod", "ts": "mpegts", "mkv": "matroska"}.get(path.suffix[1:])
    ) as file:
        stream = file.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path.read_bytes()


def read_whole(path: Path) -> float:
    """Returns the seconds that the model hears, having read the sound of the video as well."""
    limits = AudioLimits(min_seconds=0.01, max_seconds=600)
    with open_sound_track(path, limits=limits) as track:
        while len(track.read(RATE)):
            pass
    return read_speech(path, limits=limits).seconds


@pytest.mark.parametrize("name", SOUNDS)
def test_every_container_is_read(sounds: dict[str, bytes], tmp_path: Path, name: str) -> None:
    path = tmp_path / "a voice"
    path.write_bytes(sounds[name])
    assert read_whole(path) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("name", SOUNDS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damages())
def test_a_damaged_sound_is_a_sound_or_a_clear_error(
    sounds: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
    name: str,
    damage: Damage,
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged sound"
    path.write_bytes(damage(sounds[name]))
    try:
        assert read_whole(path) > 0
    except UnsupportedMediaError as error:
        assert (error.param, bool(error.remedy)) == ("audio", True)  # noqa: PT017
    assert "Traceback" not in capfd.readouterr().err
