"""What is told and parsed before any work: help without torch, and both spellings of flags."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.cli import build_parser, with_dashes
from tests.end_to_end.conftest import ROOT, TIMEOUT_S, RunCli

LOADED_FOR_HELP = """
import sys
from serve_app.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0, end.code
print(sorted({"torch", "transformers", "safetensors"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["render", "--help"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED_FOR_HELP, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    *told, loaded = done.stdout.splitlines()
    assert told[0].startswith("usage: live-avatar")
    assert loaded == "[]"


def test_without_a_command_the_usage_is_told(live_avatar: RunCli, tmp_path: Path) -> None:
    done = live_avatar(cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: live-avatar")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["--num_clip", "1"], ["--num-clip", "1"]),
        (["--num-clip", "1"], ["--num-clip", "1"]),
        (["--infer_frames=48"], ["--infer-frames=48"]),
        (["--prompt=--x_y"], ["--prompt=--x_y"]),
        (["--prompt", "a_b"], ["--prompt", "a_b"]),
        (["--prompt", "--big_smile of a person"], ["--prompt", "--big_smile of a person"]),
        (["--image", "my_face.png"], ["--image", "my_face.png"]),
        (["--image=my_face=1.png"], ["--image=my_face=1.png"]),
        (["-h", "--", "-"], ["-h", "--", "-"]),
    ],
)
def test_underscores_in_flags_become_dashes_and_values_stay(written: list[str], read: list[str]) -> None:
    assert with_dashes(written) == read


@pytest.mark.parametrize("prompt", [["--prompt=--x_y"], ["--prompt", "--big_smile of a person"], ["--prompt", "a - b"]])
def test_a_prompt_may_begin_with_dashes(prompt: list[str]) -> None:
    flags = with_dashes(["render", "--image=a", "--audio=b", *prompt])
    assert build_parser().parse_args(flags).prompt == prompt[-1].removeprefix("--prompt=")


def test_flags_are_not_guessed_from_their_beginnings() -> None:
    with pytest.raises(SystemExit) as refused:
        build_parser().parse_args(["render", "--image=a", "--audio=b", "--prompt=c", "--see=1"])
    assert refused.value.code == 2
