"""From a spec to the task of the model: fitted, cleaned, planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.errors import AvatarError, InputNotFoundError, InvalidRequestError, UnsupportedMediaError
from serve_app.media.audio import read_speech
from serve_app.planning.geometry import Size, Timeline
from serve_app.planning.workload import Workload
from serve_app.rendering.inputs import clean_prompt, describe, read_inputs
from serve_app.schemas.config import AppConfig
from serve_app.schemas.render import RenderSpec
from tests.media.conftest import WriteWav
from tests.rendering.conftest import a_spec

CONFIG = AppConfig()


def test_the_task_holds_what_the_model_needs(spec: RenderSpec, voice: Path) -> None:
    inputs = read_inputs(spec, config=CONFIG)
    task = inputs.task
    assert task.prompt == spec.prompt
    assert (task.image.shape, task.image.dtype) == ((64, 64, 3), np.uint8)
    assert (task.speech.shape, task.speech.dtype) == ((19_200,), np.float32)
    assert task.timeline == Timeline(num_frames=30, infer_frames=48)
    assert (task.sample_steps, task.seed, task.replace_reference) == (4, 420, True)
    assert inputs.sound == voice
    assert inputs.warnings == ()


def test_what_is_asked_for_reaches_the_task(portrait: Path, voice: Path) -> None:
    changes: dict[str, Any] = {"sample_steps": 3, "seed": 7, "infer_frames": 12, "enable_online_decode": False}
    task = read_inputs(a_spec(portrait, voice, **changes), config=CONFIG).task
    assert (task.sample_steps, task.seed, task.timeline.infer_frames, task.replace_reference) == (3, 7, 12, False)


@pytest.mark.parametrize(
    ("portrait_size", "size", "fit", "expected"),
    [
        ((600, 600), "704*384", "area", Size(512, 512)),
        ((1000, 500), "384*704", "area", Size(704, 384)),
        ((500, 1000), "704*384", "area", Size(384, 704)),
        ((500, 1000), "704*384", "exact", Size(704, 384)),
        ((600, 600), "64*128", "exact", Size(64, 128)),
    ],
)
def test_by_area_the_portrait_decides_the_shape_and_exactly_the_user(
    tmp_path: Path, voice: Path, portrait_size: tuple[int, int], size: str, fit: str, expected: Size
) -> None:
    path = tmp_path / "shaped.png"
    Image.new("RGB", portrait_size, "gray").save(path)
    task = read_inputs(a_spec(path, voice, size=size, fit=fit), config=CONFIG).task
    assert task.size == expected


def test_num_clip_ends_the_video_and_leaves_the_speech_whole(portrait: Path, voice: Path) -> None:
    capped = read_inputs(a_spec(portrait, voice, num_clip=1, infer_frames=12), config=CONFIG).task
    free = read_inputs(a_spec(portrait, voice, infer_frames=12), config=CONFIG).task
    assert (capped.timeline.num_frames, free.timeline.num_frames) == (12, 30)
    np.testing.assert_array_equal(capped.speech, free.speech)  # so that the shorter video is the start of the longer


def test_a_stereo_voice_of_another_rate_becomes_mono_at_16_khz(portrait: Path, write_wav: WriteWav) -> None:
    voice = write_wav(np.full((44_100, 2), 0.25), 44_100, "stereo.wav")
    task = read_inputs(a_spec(portrait, voice), config=CONFIG).task
    assert task.speech.shape == (16_000,)
    assert task.timeline.num_frames == 25


def test_what_may_spoil_the_video_is_told(tmp_path: Path, write_wav: WriteWav) -> None:
    small = tmp_path / "small.png"
    Image.new("RGB", (100, 100)).save(small)
    silence = write_wav(np.zeros(8_000), 8_000, "silence.wav")
    inputs = read_inputs(a_spec(small, silence, prompt="Hello"), config=CONFIG)
    codes = [warning.code for warning in inputs.warnings]
    assert codes == ["small_portrait", "low_sample_rate", "silent_audio", "short_prompt"]


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"sample_steps": 3}, ["other_sample_steps"]),
        ({"infer_frames": 36}, ["other_infer_frames"]),
        ({"num_clip": 1}, []),  # the voice ends within the clip
        ({"infer_frames": 12, "num_clip": 2}, ["other_infer_frames", "cut_audio"]),
    ],
)
def test_settings_that_are_not_the_models_and_a_cut_voice_are_told(
    portrait: Path, voice: Path, changes: dict[str, Any], codes: list[str]
) -> None:
    inputs = read_inputs(a_spec(portrait, voice, **changes), config=CONFIG)
    assert [warning.code for warning in inputs.warnings] == codes


def test_a_cut_voice_is_told_with_both_lengths(portrait: Path, voice: Path) -> None:
    *_, last = read_inputs(a_spec(portrait, voice, infer_frames=12, num_clip=2), config=CONFIG).warnings
    assert str(last) == "num_clip 2 ends the video after 0.96 s of 1.20 s of audio"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_seconds": 0.5}, ["seconds 0.5 ends the video after 0.48 s of 1.20 s of audio"]),
        ({"max_seconds": 5.0}, []),
        (
            {"infer_frames": 12, "num_clip": 1, "max_seconds": 1.0},
            ["num_clip 1 ends the video after 0.48 s of 1.20 s of audio"],
        ),
    ],
)
def test_a_voice_that_seconds_cut_is_told_too(
    portrait: Path, voice: Path, changes: dict[str, Any], said: list[str]
) -> None:
    inputs = read_inputs(a_spec(portrait, voice, **changes), config=CONFIG)
    assert [warning.message for warning in inputs.warnings if warning.code == "cut_audio"] == said


def test_facts_alone_tell_what_the_render_will_be(portrait: Path, voice: Path) -> None:
    spec = a_spec(portrait, voice, infer_frames=12, num_clip=2)
    inputs = read_inputs(spec, config=CONFIG)
    video = describe(spec, portrait=Size(512, 512), speech=read_speech(voice, limits=CONFIG.audio))
    assert (video.size, video.timeline, video.prompt) == (inputs.task.size, inputs.task.timeline, inputs.task.prompt)
    assert video.warnings == inputs.warnings
    assert video.work == Workload(size=Size(64, 64), infer_frames=12, num_frames=24, speech_seconds=1.2)


@pytest.mark.parametrize(
    ("changes", "error", "param"),
    [
        ({"image": "missing.png"}, InputNotFoundError, "image"),
        ({"audio": "missing.wav"}, InputNotFoundError, "audio"),
        ({"image": "voice.wav"}, UnsupportedMediaError, "image"),
        ({"audio": "portrait.png"}, UnsupportedMediaError, "audio"),
        ({"size": "100*100", "fit": "exact"}, InvalidRequestError, "size"),
        ({"prompt": " \t\n "}, InvalidRequestError, "prompt"),
        ({"prompt": "&nbsp;&amp;emsp;"}, InvalidRequestError, "prompt"),
    ],
)
def test_what_is_wrong_with_a_request_is_found_before_the_model_is_touched(
    tmp_path: Path,
    portrait: Path,
    voice: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    error: type[AvatarError],
    param: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as refused:
        read_inputs(a_spec(portrait, voice, **changes), config=CONFIG)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("A person talks.", "A person talks."),
        ("  A person\n\ttalks.\u3000 ", "A person talks."),
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("a &lt;b&gt; c", "a <b> c"),
        ("CafÃ© at night", "Café at night"),
        ("“quoted” and ‘so’", "\"quoted\" and 'so'"),
        ("Ｆｕｌｌ ｗｉｄｔｈ", "Full width"),
        ("一位女士在说话。", "一位女士在说话。"),
        ("Żółw mówi 🎬", "Żółw mówi 🎬"),
    ],
)
def test_a_prompt_is_cleaned_as_the_text_encoder_knows_it(prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned
