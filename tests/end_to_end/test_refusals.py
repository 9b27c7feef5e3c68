"""Bad requests end with exit code 2, say what to do, and leave nothing behind."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from serve_app.model.checkpoint import BASE_FOLDER
from tests.end_to_end.conftest import TIMEOUT_S, RunCli, environment
from tests.media.conftest import WriteWav, raw_png

GOOD = {"--image": "portrait.png", "--audio": "voice.wav", "--prompt": "A person talks.", "--out": "made/video.mp4"}


def files_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def words(flags: dict[str, str]) -> list[str]:
    return [word for flag, value in flags.items() for word in (flag, value)]


@pytest.fixture(name="bad_inputs")
def _bad_inputs(inputs: Path, write_wav: WriteWav) -> Path:
    """The folder `inputs` with files in it that are no portraits, voices and tasks."""
    (inputs / "empty.png").touch()
    Image.new("RGB", (1, 1)).save(inputs / "dot.png")
    (inputs / "vast.png").write_bytes(raw_png(30_000, 30_000, bits=8, color_type=2, rows=b""))
    (inputs / "cut.png").write_bytes((inputs / "portrait.png").read_bytes()[:-200])
    (inputs / "empty.wav").touch()
    write_wav(np.zeros(0), 16_000, "nothing.wav")
    write_wav(0.3 * np.sin(np.arange(1_600) / 20), 16_000, "short.wav")
    (inputs / "cut.wav").write_bytes((inputs / "voice.wav").read_bytes()[:9_644])
    (inputs / "broken.json").write_text('{"prompt": "A person')
    (inputs / "odd.json").write_text('{"num_clips": 3}')
    (inputs / "lost.json").write_text('{"image": "me.png", "audio": "voice.wav"}')
    (inputs / "guided.json").write_text('{"sample_guide_scale": 5}')
    return inputs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--image": "no.png"}, 'live-avatar: "no.png" cannot be read: No such file or directory; give the path'),
        ({"--audio": "no.wav"}, 'live-avatar: "no.wav" cannot be read: No such file or directory; give the path'),
        ({"--layout": "stages=0"}, "live-avatar: stages=0 is not a whole number from 1 to 16; use stages=1"),
        ({"--layout": "stage=2"}, "(did you mean stages?); write single, or some of stages=,ulysses="),
        ({"--layout": "ulysses=2,weight_shards=3"}, "use weight_shards=1 or weight_shards=2"),
        ({"--layout": "single", "--ulysses-size": "2"}, "both say how ranks share the video; give one of them"),
        (
            {"--num-gpus-dit": "3", "--ulysses-size": "3"},
            "does not divide the model's 40 attention heads; use num_gpus",
        ),
        ({"--image": "."}, 'live-avatar: "." is not a regular file; give the path of an existing image file'),
        ({"--image": "voice.wav"}, 'live-avatar: "voice.wav" is not a readable image'),
        ({"--image": "empty.png"}, 'live-avatar: "empty.png" is empty; give the path of a whole image file'),
        ({"--image": "cut.png"}, 'live-avatar: "cut.png" is not a readable image'),
        ({"--image": "dot.png"}, "1x1 = 1 pixels; allowed are sides of at least 32; scale or crop the portrait"),
        ({"--image": "vast.png"}, "has 900000000 pixels; allowed are up to 50000000; scale or crop the portrait"),
        ({"--audio": "portrait.png"}, 'live-avatar: "portrait.png"'),
        ({"--audio": "empty.wav"}, 'live-avatar: "empty.wav" is empty; give the path of a whole audio file'),
        ({"--audio": "nothing.wav"}, 'live-avatar: "nothing.wav" has no samples; give a file with sound'),
        ({"--audio": "short.wav"}, '"short.wav" has 0.100 s of sound; at least 0.2 s are needed; give a longer'),
        ({"--audio": "cut.wav"}, '"cut.wav" promises 0.60 s of sound but has 0.30 s; export it again as WAV or FLAC'),
        ({"--infer_frames": "32"}, "infer_frames 32 is not a multiple of 12 between 12 and 480; use 24 or 36 (48 is"),
        ({"--infer-frames": "many"}, "argument --infer-frames: invalid int value: 'many'"),
        ({"--size": "704"}, "live-avatar: size '704' is not WIDTH*HEIGHT; write two numbers, for example 704*384"),
        ({"--size": "0*0"}, "live-avatar: size 0x0 has a side below 1 pixel; write it as WIDTH*HEIGHT"),
        ({"--size": "100*100", "--fit": "exact"}, "live-avatar: size 100x100 is not a multiple of 64"),
        ({"--fit": "stretch"}, "argument --fit: invalid choice: 'stretch'"),
        ({"--num_clip": "0"}, "live-avatar: num_clip 0: input should be greater than or equal to 1"),
        ({"--sample_steps": "0"}, "live-avatar: sample_steps 0: input should be greater than or equal to 1"),
        ({"--sample_guide_scale": "5"}, "sample_guide_scale 5.0: only 0 is allowed; guidance has no effect in the"),
        ({"--enable_online_decode": "maybe"}, "live-avatar: enable_online_decode 'maybe': input should be a valid"),
        ({"--preset": "fast"}, "live-avatar: preset 'fast' does not exist; use one of fast_preview, social, high_"),
        ({"--sample_steps": "99"}, "live-avatar: sample_steps 99: input should be less than or equal to 10"),
        ({"--seed": "-1"}, "live-avatar: seed -1: input should be greater than or equal to 0"),
        ({"--prompt": ""}, "live-avatar: prompt '': string should have at least 1 character"),
        ({"--prompt": " \t&nbsp; "}, "live-avatar: prompt ' \\t&nbsp; ' is blank; describe person, clothes and pose"),
        ({"--smile": "wide"}, "live-avatar render: error: unrecognized arguments: --smile wide\n"),
        ({"--num_clips": "1"}, "unrecognized arguments: --num-clips 1 (did you mean --num-clip?)\n"),
        ({"--task": "no.json"}, 'live-avatar: "no.json" cannot be read: No such file or directory; give the path'),
        ({"--task": "broken.json"}, 'live-avatar: "broken.json" is not JSON in UTF-8 (Unterminated string'),
        ({"--task": "odd.json"}, "'num_clips' is not a field of a render (did you mean num_clip?); leave it out"),
        ({"--task": "guided.json"}, "live-avatar: sample_guide_scale 5: only 0 is allowed"),
        ({"--out": "."}, 'live-avatar: "." is a folder; name a file'),
        ({"--out": "voice.wav/video.mp4"}, 'live-avatar: "voice.wav" is not a folder; choose a folder for the video'),
        (
            {"--out": "/proc/made/video.mp4"},
            '"/proc/made/video.mp4" cannot be written: No such file or directory; choose',
        ),
        ({"--out": "v" * 300}, "cannot be written: File name too long; choose"),
    ],
    ids=lambda value: " ".join(f"{flag}={text}" for flag, text in value.items()) if isinstance(value, dict) else "",
)
def test_a_bad_request_is_refused_before_anything_is_made(
    live_avatar: RunCli, bad_inputs: Path, changes: dict[str, str], said: str
) -> None:
    before = files_below(bad_inputs)
    done = live_avatar("render", *words({**GOOD, **changes}), cwd=bad_inputs, cache=bad_inputs / "cache")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert files_below(bad_inputs) == before


@pytest.mark.parametrize("missing", [["--image"], ["--audio", "--prompt"]])
def test_missing_inputs_are_named(live_avatar: RunCli, tmp_path: Path, missing: list[str]) -> None:
    given = {flag: value for flag, value in GOOD.items() if flag not in missing}
    done = live_avatar("render", *words(given), cwd=tmp_path)
    assert done.returncode == 2
    assert f"{', '.join(missing)} missing; give the flag, or --task with a file that has the field" in done.stderr


def test_an_input_of_a_task_file_that_is_nowhere_is_told_with_the_places(live_avatar: RunCli, bad_inputs: Path) -> None:
    done = live_avatar("render", "--task=lost.json", "--prompt=A person talks.", cwd=bad_inputs)
    assert done.returncode == 2
    places = '"me.png", "../inputs/images/me.png", "inputs/images/me.png"'
    assert f"image 'me.png' of the task file is not there; looked for {places}; put it there" in done.stderr


@pytest.mark.parametrize("flag", ["image", "prompt"])
def test_a_name_that_is_not_utf_8_is_refused_in_escapes(live_avatar: RunCli, inputs: Path, flag: str) -> None:
    odd = os.fsdecode(b"caf\xe9")
    shutil.copy(inputs / "portrait.png", inputs / odd)
    done = live_avatar("render", *words({**GOOD, f"--{flag}": odd}), cwd=inputs)
    assert done.returncode == 2, done.stderr
    assert rf"live-avatar: {flag} 'caf\udce9' is not UTF-8; write {flag} in UTF-8" in done.stderr
    assert not (inputs / "made").exists()


def test_a_picture_of_50_mb_that_swells_is_refused_before_it_is_decoded(live_avatar: RunCli, inputs: Path) -> None:
    bomb = raw_png(16_000, 16_000, bits=8, color_type=2, rows=bytes(49_900_000), level=0)
    assert 49_000_000 < len(bomb) < 50 * 2**20
    (inputs / "bomb.png").write_bytes(bomb)
    done = live_avatar(
        "render", *words({**GOOD, "--image": "bomb.png"}), cwd=inputs, limit=(resource.RLIMIT_AS, 700_000_000)
    )
    assert done.returncode == 2, done.stderr
    assert 'live-avatar: "bomb.png" has 256000000 pixels; allowed are up to 50000000; scale or crop' in done.stderr
    assert not (inputs / "made").exists()


@pytest.mark.parametrize("name", ["voice.wav", "portrait.png"])
def test_a_video_never_replaces_its_own_inputs(live_avatar: RunCli, inputs: Path, name: str) -> None:
    before = (inputs / name).read_bytes()
    done = live_avatar("render", *words({**GOOD, "--out": f"../{inputs.name}/{name}"}), cwd=inputs)
    assert done.returncode == 2, done.stderr
    assert f'{name}" is an input of this video; name another file for --out' in done.stderr
    assert (inputs / name).read_bytes() == before


def test_a_folder_that_may_not_be_written_is_told(live_avatar: RunCli, inputs: Path) -> None:
    (inputs / "made").mkdir(mode=0o500)
    done = live_avatar("render", *words(GOOD), cwd=inputs)
    assert done.returncode == 2, done.stderr
    assert '"made/video.mp4" cannot be written: Permission denied; choose a folder that is writable' in done.stderr


def test_a_disk_that_fills_up_while_writing_is_told_and_cleared(
    live_avatar: RunCli, inputs: Path, small_checkpoint: Path
) -> None:
    flags = words({**GOOD, "--checkpoint": str(small_checkpoint), "--size": "64*64"})
    before = files_below(inputs)
    done = live_avatar("render", *flags, cwd=inputs, limit=(resource.RLIMIT_FSIZE, 4_096))
    assert done.returncode == 2, done.stderr
    said = '"made/video.mp4" cannot be written: File too large; choose a folder that is writable and has free space'
    assert done.stderr.splitlines()[-1] == f"live-avatar: {said}"
    assert "Traceback" not in done.stderr
    assert files_below(inputs) == before


def test_a_checkpoint_with_a_missing_and_a_misshapen_tensor_is_told_with_both(
    live_avatar: RunCli, inputs: Path, small_checkpoint: Path
) -> None:
    checkpoint = shutil.copytree(small_checkpoint, inputs / "ckpt")
    shard = max((checkpoint / BASE_FOLDER).glob("*.safetensors"))
    tensors = load_file(shard)
    missing, misshapen = sorted(name for name in tensors if name.endswith(".bias"))[:2]
    del tensors[missing]
    width = len(tensors[misshapen])
    tensors[misshapen] = tensors[misshapen][1:].contiguous()
    save_file(tensors, shard)
    index = next((checkpoint / BASE_FOLDER).glob("*.index.json"))
    listed = json.loads(index.read_text())
    del listed["weight_map"][missing]
    index.write_text(json.dumps(listed))

    before = files_below(inputs)
    done = live_avatar("render", *words({**GOOD, "--checkpoint": "ckpt"}), cwd=inputs)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"{misshapen} has shape [{width - 1}], not [{width}]" in last
    assert f"missing {missing}" in last
    assert "; download it again" in last
    assert "Traceback" not in done.stderr
    assert files_below(inputs) == before


LITTLE_SHARED_MEMORY = """
import sys
from types import SimpleNamespace
from ray_cluster import local
from serve_app.cli import main
local.shutil = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=64 << 20))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "command",
    [
        ["bulk", "run", "--audio-dir=.", "--image=portrait.png", "--prompt=A man.", "--out=made", "--gpus=none"],
        ["serve", "--port=0", "--data-dir=made"],
        ["demo", "--out=made/demo.mp4"],
    ],
    ids=lambda command: command[0],
)
def test_a_container_as_docker_makes_it_is_too_small_for_ray(inputs: Path, cache: Path, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_SHARED_MEMORY, *command],
        cwd=inputs,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("live-avatar: the object store takes 512 MiB, /dev/shm has 64 MiB; ")
    assert "docker run --shm-size" in last
    assert "Traceback" not in done.stderr
