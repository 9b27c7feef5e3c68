"""Bad requests end with exit code 2, say what to do, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.conftest import RunCli

GOOD = {"--image": "portrait.png", "--audio": "voice.wav", "--prompt": "A person talks.", "--out": "made/video.mp4"}


def files_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--image": "no.png"}, 'live-avatar: "no.png" cannot be read: No such file or directory; give the path'),
        ({"--audio": "no.wav"}, 'live-avatar: "no.wav" cannot be read: No such file or directory; give the path'),
        ({"--image": "voice.wav"}, 'live-avatar: "voice.wav" is not a readable image'),
        ({"--audio": "portrait.png"}, 'live-avatar: "portrait.png"'),
        ({"--infer_frames": "32"}, "live-avatar: infer_frames 32 is not a multiple of 12"),
        ({"--infer-frames": "32"}, "use 24 or 36 (48 is the default)"),
        ({"--infer-frames": "many"}, "argument --infer-frames: invalid int value: 'many'"),
        ({"--size": "704"}, "live-avatar: size '704' is not WIDTH*HEIGHT; write two numbers, for example 704*384"),
        ({"--size": ""}, "live-avatar: size '' is not WIDTH*HEIGHT; write two numbers"),
        ({"--size": "0*0"}, "live-avatar: size 0x0 has a side below 1 pixel; write it as WIDTH*HEIGHT"),
        ({"--size": "100*100", "--fit": "exact"}, "live-avatar: size 100x100 is not a multiple of 64"),
        ({"--fit": "stretch"}, "argument --fit: invalid choice: 'stretch'"),
        ({"--num_clip": "0"}, "live-avatar: num_clip 0: input should be greater than or equal to 1"),
        ({"--num-clip": "-1"}, "live-avatar: num_clip -1: input should be greater than or equal to 1"),
        ({"--sample_steps": "99"}, "live-avatar: sample_steps 99: input should be less than or equal to 10"),
        ({"--seed": "-1"}, "live-avatar: seed -1: input should be greater than or equal to 0"),
        ({"--prompt": ""}, "live-avatar: prompt '': string should have at least 1 character"),
        ({"--smile": "wide"}, "unrecognized arguments: --smile wide"),
        ({"--out": "."}, 'live-avatar: "." is a folder; name a file'),
        ({"--out": "voice.wav/video.mp4"}, 'live-avatar: "voice.wav" is not a folder; choose a folder for the video'),
    ],
    ids=lambda value: " ".join(f"{flag}={text}" for flag, text in value.items()) if isinstance(value, dict) else "",
)
def test_a_bad_request_is_refused_before_anything_is_made(
    live_avatar: RunCli, inputs: Path, changes: dict[str, str], said: str
) -> None:
    before = files_below(inputs)
    flags = [word for flag, value in {**GOOD, **changes}.items() for word in (flag, value)]
    done = live_avatar("render", *flags, cwd=inputs, cache=inputs / "cache")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert files_below(inputs) == before


@pytest.mark.parametrize("flag", ["--image", "--audio", "--prompt"])
def test_a_missing_flag_is_named(live_avatar: RunCli, tmp_path: Path, flag: str) -> None:
    flags = [word for name, value in GOOD.items() if name != flag for word in (name, value)]
    done = live_avatar("render", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert f"the following arguments are required: {flag}" in done.stderr
