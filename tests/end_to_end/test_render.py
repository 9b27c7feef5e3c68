"""`live-avatar render` with the built-in model: from files to a video that ffprobe approves of."""

from __future__ import annotations

import json
import os
import re
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.conftest import ROOT, RunCli
from tests.media.conftest import Probe, WriteWav

SAMPLES = ROOT / "serve_app" / "samples"
SAMPLE_INPUTS = [
    f"--image={SAMPLES}/portrait.png",
    f"--audio={SAMPLES}/speech.wav",
    "--prompt=A person in a grey coat talks calmly.",
]
LEAST = ["--image=portrait.png", "--audio=voice.wav", "--size=64*64"]
LAST_LINE = re.compile(
    r"(?P<path>.+): (?P<size>\d+x\d+), (?P<frames>\d+) frames, (?P<seconds>\d+\.\d\d) s of video "
    r"in \d+\.\d s \(\d+\.\d\dx real time\)"
)


@dataclass(frozen=True)
class Rendered:
    """A video and what was said while it was made."""

    path: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def sample(live_avatar: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """The built-in sample, whole, in the smallest size."""
    folder = tmp_path_factory.mktemp("sample")
    done = live_avatar("render", *SAMPLE_INPUTS, "--size=64*64", "--out=made/video.mp4", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["made"]
    return Rendered(folder / "made" / "video.mp4", done.stdout, done.stderr)


def sample_frames() -> int:
    with wave.open(str(SAMPLES / "speech.wav")) as speech:
        return round(25 * speech.getnframes() / speech.getframerate())


def said_last(stdout: str) -> dict[str, str]:
    """Returns the parts of the last line, asserting that it is the only one."""
    [line] = stdout.splitlines()
    match = LAST_LINE.fullmatch(line)
    assert match, line
    return match.groupdict()


def test_the_sample_becomes_a_video_as_long_as_its_speech(sample: Rendered, ffprobe: Probe) -> None:
    num_frames = sample_frames()
    probed = ffprobe(sample.path)
    video, audio = probed["video"], probed["audio"]
    assert (video["codec_name"], audio["codec_name"]) == ("h264", "aac")
    assert (video["width"], video["height"], video["r_frame_rate"]) == (64, 64, "25/1")
    assert int(video["nb_read_frames"]) == num_frames
    assert (float(video["start_time"]), float(audio["start_time"])) == (0, 0)
    assert float(video["duration"]) == pytest.approx(num_frames / 25)
    assert float(audio["duration"]) == pytest.approx(num_frames / 25, abs=0.040)


def test_the_last_line_says_where_the_video_is_and_what_it_is(sample: Rendered) -> None:
    said = said_last(sample.stdout)
    num_frames = sample_frames()
    assert said == {
        "path": "made/video.mp4",
        "size": "64x64",
        "frames": f"{num_frames}",
        "seconds": f"{num_frames / 25:.2f}",
    }


def test_progress_shows_frames_per_second_and_the_time_left(sample: Rendered) -> None:
    steps = [line for line in sample.stderr.split("\r") if "12/" in line or "24/" in line]
    assert steps, sample.stderr
    assert all(re.search(r"\[\d\d:\d\d<\d\d:\d\d, +[\d.]+frame/s\]", step) for step in steps), steps
    assert f"{sample_frames()}/{sample_frames()}" in sample.stderr


def test_a_good_portrait_and_voice_raise_no_warning(sample: Rendered) -> None:
    assert "warning:" not in sample.stderr


def test_the_same_seed_in_another_process_gives_the_same_bytes(
    sample: Rendered, live_avatar: RunCli, tmp_path: Path
) -> None:
    done = live_avatar("render", *SAMPLE_INPUTS, "--size=64*64", "--seed=420", "--out=again.mp4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.mp4").read_bytes() == sample.path.read_bytes()


def test_flags_may_have_underscores_prompts_any_characters_and_videos_names_that_are_not_utf_8(
    live_avatar: RunCli, inputs: Path
) -> None:
    odd = os.fsdecode(b"caf\xe9.mp4")
    prompt = "--x_y: Żółta kurtka, 一位女士在说话 🎬 &amp; “quotes”"
    flags = ["--num_clip", "1", "--infer_frames", "12", "--sample_steps=2", f"--prompt={prompt}", f"--out={odd}"]
    done = live_avatar("render", *LEAST, *flags, cwd=inputs)
    assert done.returncode == 0, done.stderr
    assert said_last(done.stdout) == {"path": r"caf\udce9.mp4", "size": "64x64", "frames": "12", "seconds": "0.48"}
    assert (inputs / odd).is_file()


def test_an_exact_size_is_kept_and_warnings_come_before_the_progress(live_avatar: RunCli, inputs: Path) -> None:
    flags = ["--fit=exact", "--size=128*64", "--num-clip=1", "--infer-frames=12", "--prompt", "Hello", "--out=a.mp4"]
    done = live_avatar("render", "--image=portrait.png", "--audio=voice.wav", *flags, cwd=inputs)
    assert done.returncode == 0, done.stderr
    assert said_last(done.stdout)["size"] == "128x64"
    assert done.stderr.startswith("warning: the prompt has 1 words;")


def test_a_users_task_file_is_rendered_by_a_preset_and_flags_win(
    live_avatar: RunCli, inputs: Path, write_wav: WriteWav
) -> None:
    for folder in ("inputs/images", "inputs/audios", "task_queue"):
        (inputs / folder).mkdir(parents=True)
    (inputs / "portrait.png").rename(inputs / "inputs" / "images" / "me.png")
    write_wav(np.zeros(32_000), 16_000, "inputs/audios/voice.wav")
    fields = {"image": "me.png", "audio": "voice.wav", "prompt": "一位女士在说话", "size": "688*368", "num_clip": 1}
    (inputs / "task_queue" / "task_001.json").write_text(json.dumps(fields), encoding="utf-8-sig")
    flags = ["--preset=fast_preview", "--size=64*64", "--sample_guide_scale=0", "--enable_online_decode"]
    done = live_avatar("render", "--task=task_queue/task_001.json", *flags, cwd=inputs)
    assert done.returncode == 0, done.stderr
    assert said_last(done.stdout) == {"path": "output.mp4", "size": "64x64", "frames": "36", "seconds": "1.44"}
    assert [line for line in done.stderr.splitlines() if line.startswith("warning:")] == [
        "warning: the audio is almost silent (peak 0.0000, rms 0.00000 of full scale); check the recording",
        "warning: sample_steps is 3, the model was distilled for 4: pictures will differ",
        "warning: infer_frames is 36, the default is 48: the model looks back 1.44 s instead of 1.92 s",
        "warning: num_clip 1 ends the video after 1.44 s of 2.00 s of audio",
    ]
