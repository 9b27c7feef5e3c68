"""`live-avatar plan`: what it prints, as a table and as JSON, its exit codes; that it needs neither torch nor Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ray_cluster.inventory import Gpu
from ray_cluster.nvml import GpuReadError, NoGpus
from serve_app.cli import main
from serve_app.commands import plan as plan_command
from serve_app.plan_report import plan as plan_module
from serve_app.plan_report.matrix import as_matrix
from serve_app.planning.calibration import load_calibration
from serve_app.planning.feasibility import fits
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.workload import Workload
from tests.media.conftest import WriteWav, write_wav

ROOT = Path(__file__).parents[2]
__all__ = ["write_wav"]


class Planned:
    """One run of the command."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.exit_code = main(["plan", *arguments])
        captured = capsys.readouterr()
        self.out, self.err = captured.out, captured.err

    @property
    def json(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.out)
        return values


def test_a_video_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    planned = Planned(capsys, "--gpus", "5x80", "--size", "704*384")
    assert planned.exit_code == 0
    assert "704x384, infer_frames 48, 4 steps, 60.0 s of video; layout stages=4,vae=1 on 5x80 (79.25 GiB" in planned.out
    header, kv, card = (
        next(line for line in planned.out.splitlines() if line.startswith(name)) for name in ("GiB", "KV", "card")
    )
    assert header.split() == ["GiB", "at", "the", "worst", "moment", "rank", "0", "ranks", "1-3", "rank", "4", "vae"]
    assert kv.split() == ["KV", "cache", "9.67", "9.67"]
    assert card.split() == ["card", "79.25", "79.25", "79.25"]
    assert "\nfits\n" in planned.out
    assert "time (analytic): " in planned.out


def test_a_video_that_never_fits(capsys: pytest.CaptureFixture[str]) -> None:
    planned = Planned(capsys, "--gpus", "1x24", "--size", "704*384", "--layout", "single")
    assert planned.exit_code == 3
    assert "never fits: rank 0 (stage 0, ulysses 0) needs" in planned.out
    assert "what no longer fits is: transformer weights" in planned.out
    assert "  --layout offload=layers --size 448x256  (22.84 GiB)" in planned.out


@pytest.mark.parametrize(("gpus", "verdict", "exit_code"), [("5x80", "fits", 0), ("1x24", "never_fits", 3)])
def test_json_is_one_object_also_when_refused(
    capsys: pytest.CaptureFixture[str], gpus: str, verdict: str, exit_code: int
) -> None:
    planned = Planned(capsys, "--gpus", gpus, "--json")
    assert planned.exit_code == exit_code
    found = planned.json
    assert found["verdict"] == verdict
    assert found["size"] == "704x384"
    assert bool(found["nearest"]) == bool(found["does_not_fit"]) == (verdict == "never_fits")
    for rank in found["ranks"]:
        assert sum(rank["parts"].values()) == rank["needed_bytes"]
        assert rank["fits"] == (rank["needed_bytes"] <= rank["available_bytes"])


def test_what_is_offered_is_a_plan_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    for one in Planned(capsys, "--gpus", "4x24", "--json").json["nearest"]:
        assert Planned(capsys, "--gpus", "4x24", *one["flags"].split()).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--infer-frames", "32"], "infer_frames 32 is not a multiple of 12 between 12 and 480; use 24 or 36"),
        (["--size", "704"], "size '704' is not WIDTH*HEIGHT"),
        (["--layout", "ulysses=3"], "ulysses=3 does not divide the model's 40 attention heads"),
        (["--num_gpus_dit", "3", "--ulysses_size", "3"], "use num_gpus_dit=3, ulysses_size=1"),
        (["--layout", "stages=8"], "layout stages=8 has 8 ranks, but 4x24 is 4 cards; use a layout of 4 ranks"),
        (
            ["--gpus", "1x24", "--layout", "vae=1"],
            "has 2 ranks, but 1x24 is 1 card; use a layout of 1 rank, or --gpus 2",
        ),
        (["--gpus", "4x99"], "'99' is no known card"),
        (["--image", "absent.png"], "absent.png"),
        (["--calibration", "absent.json"], "absent.json is no calibration"),
    ],
)
def test_a_bad_value_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    planned = Planned(capsys, "--gpus", "4x24", *arguments)
    assert planned.exit_code == 2
    assert planned.out == ""
    assert message in planned.err


def test_portrait_and_voice_decide_size_and_length(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, write_wav: WriteWav
) -> None:
    Image.new("RGB", (500, 1000)).save(tmp_path / "me.png")
    voice = write_wav(np.zeros(16_000 * 6, np.float32), 16_000)
    inputs = ["--image", str(tmp_path / "me.png"), "--audio", str(voice)]
    found = Planned(capsys, "--gpus", "5x80", "--json", *inputs).json
    assert (found["size"], found["num_frames"]) == ("384x704", 150)
    capped = Planned(capsys, "--gpus", "5x80", "--json", "--num-clip", "1", *inputs).json
    assert capped["num_frames"] == 48
    assert capped["ranks"] == found["ranks"]


@pytest.mark.parametrize(
    ("gpus", "layout"),
    [("4xRTX4090", "ulysses=4,weight_shards=4"), ("1xA100", "single"), ("1xH200", "single"), ("2xH200", "ulysses=2")],
)
def test_without_a_layout_the_preset_of_the_machine_or_the_fastest_that_fits(
    capsys: pytest.CaptureFixture[str], gpus: str, layout: str
) -> None:
    assert Planned(capsys, "--gpus", gpus, "--json").json["layout"] == layout


def test_alternatives_are_searched_for_the_layout_of_the_plan_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search takes a second with many cards; the layouts that are compared are hundreds."""
    judged: list[str] = []

    def counted(work: Workload, layout: ParallelLayout, *arguments: Any, **options: Any) -> Any:
        judged.append(str(layout))
        return fits(work, layout, *arguments, **options)

    monkeypatch.setattr(plan_module, "fits", counted)
    assert Planned(capsys, "--gpus", "64xRTX5090", "--size", "1280*720", "--infer-frames", "480").exit_code == 3
    assert judged == ["single"]


def test_auto_plans_for_the_smallest_card_of_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = (Gpu(0, "RTX4090", 24 * 2**30, 0), Gpu(1, "RTX4090", 22 * 2**30, 0))
    monkeypatch.setattr(plan_command, "local_gpus", lambda: cards)
    found = Planned(capsys, "--size", "384*256", "--json").json
    assert found["gpus"] == "2xRTX4090"
    assert {rank["available_bytes"] for rank in found["ranks"]} == {22 * 2**30}


def test_auto_without_cards_asks_for_a_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_command, "local_gpus", lambda: NoGpus("no driver", is_fault=False))
    planned = Planned(capsys, "--gpus", "auto")
    assert planned.exit_code == 2
    assert planned.err == "live-avatar: gpus auto: no driver; name the cards to plan for, for example --gpus 4x24\n"


def test_auto_on_a_card_that_does_not_answer_asks_for_a_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> NoGpus:
        raise GpuReadError("GPU 0 (H100): NVML says: GPU is lost")

    monkeypatch.setattr(plan_command, "local_gpus", lost)
    planned = Planned(capsys, "--gpus", "auto")
    assert planned.exit_code == 2
    assert "GPU is lost; name the cards to plan for" in planned.err


def test_neither_torch_nor_ray_is_imported() -> None:
    program = (
        "import sys\nfrom serve_app.cli import main\nmain(['plan', '--gpus', '4x24'])\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray')))"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=120)
    assert process.returncode == 0, process.stderr


def test_the_readme_shows_the_matrix_as_it_is() -> None:
    assert as_matrix(load_calibration()) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_matrix_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    planned = Planned(capsys, "--matrix")
    assert planned.exit_code == 0
    assert planned.out == as_matrix(load_calibration()) + "\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--json"], "--json"),
        (["--gpus", "1x24"], "--gpus"),
        (["--size", "64*64", "--num-clip", "1"], "--size, --num-clip"),
        (["--offload-model"], "--offload-model"),
        (["--layout", "single"], "--layout"),
    ],
)
def test_a_flag_that_the_matrix_would_ignore_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    planned = Planned(capsys, "--matrix", *arguments)
    assert (planned.exit_code, planned.out) == (2, "")
    assert planned.err.startswith(f"live-avatar: {named} beside --matrix, ")
