"""The built-in samples are what `serve_app.samples.make` makes."""

from __future__ import annotations

import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_app.errors import OutputError
from serve_app.samples import make
from serve_app.samples.portrait import draw_portrait

SAMPLES = Path(make.__file__).parent


def read_speech(path: Path) -> tuple[wave._wave_params, np.ndarray]:
    with wave.open(str(path)) as speech:
        return speech.getparams(), np.frombuffer(speech.readframes(speech.getnframes()), dtype="<i2")


def test_the_portrait_is_large_enough_to_render_from() -> None:
    with Image.open(SAMPLES / "portrait.png") as portrait:
        assert portrait.mode == "RGB"
        assert min(portrait.size) >= 768


def test_the_portrait_equals_its_drawing() -> None:
    with Image.open(SAMPLES / "portrait.png") as portrait:
        committed = np.asarray(portrait, dtype=np.int16)
    drawn = np.asarray(draw_portrait(), dtype=np.int16)
    assert drawn.shape == committed.shape
    assert np.abs(drawn - committed).max() <= 2


def test_the_speech_is_a_short_audible_mono_wav() -> None:
    params, samples = read_speech(SAMPLES / "speech.wav")
    assert (params.nchannels, params.sampwidth, params.framerate) == (1, 2, 22050)
    assert 2.5 <= params.nframes / params.framerate <= 4
    assert len(samples) == params.nframes
    assert np.abs(samples).max() > 3000
    assert np.sqrt(np.mean(np.square(samples, dtype=np.float64))) > 300


def test_speaking_again_takes_as_long(tmp_path: Path) -> None:
    make.speak(make.SPEECH, tmp_path / "speech.wav")
    committed, _ = read_speech(SAMPLES / "speech.wav")
    spoken, _ = read_speech(tmp_path / "speech.wav")
    assert spoken.framerate == committed.framerate
    assert abs(spoken.nframes - committed.nframes) <= 0.05 * committed.framerate


def test_the_prompt_is_the_sentence_of_the_maker() -> None:
    assert (SAMPLES / "prompt.txt").read_text(encoding="utf-8") == make.PROMPT + "\n"


def test_the_samples_are_small() -> None:
    assert (SAMPLES / "portrait.png").stat().st_size < 300_000
    assert (SAMPLES / "speech.wav").stat().st_size < 200_000


def test_names_the_remedy_when_espeak_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OutputError, match=r"espeak-ng is not installed; install it"):
        make.speak("Hello", tmp_path / "speech.wav")


def test_names_the_file_when_espeak_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(OutputError, match=r"could not write .*speech\.wav"):
        make.speak("Hello", tmp_path / "speech.wav")
