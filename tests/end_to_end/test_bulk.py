"""`live-avatar bulk` with the tiny model: the same videos as `render` makes, in the layout that users know."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from tests.bulk_jobs.manifests import write_voice
from tests.end_to_end.conftest import RunCli

PROMPT = "A friendly person in a bright office talks to the camera."
CPU = ("--gpus=none",)


def test_a_folder_of_voices_becomes_the_videos_that_render_makes(live_avatar: RunCli, tmp_path: Path) -> None:
    Image.new("RGB", (512, 512), "gray").save(tmp_path / "me.png")
    (tmp_path / "voices").mkdir()
    for name, seconds in (("anna", 0.6), ("bert", 1.1)):
        write_voice(tmp_path / "voices" / f"{name}.wav", seconds)
    flags = ["--image", "me.png", "--prompt", PROMPT, "--size", "64*64"]
    bulk = [
        "bulk",
        "run",
        "--audio-dir",
        "voices",
        *flags,
        "--name",
        "{stem}_avatar",
        "--out",
        "out",
        "--archive",
        *CPU,
    ]
    made = live_avatar(*bulk, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "2 made" in made.stdout
    for name in ("anna", "bert"):
        single = f"{name}.mp4"
        rendered = live_avatar("render", *flags, "--audio", f"voices/{name}.wav", "--out", single, cwd=tmp_path)
        assert rendered.returncode == 0, rendered.stderr
        assert (tmp_path / "out" / "videos" / f"{name}_avatar.mp4").read_bytes() == (tmp_path / single).read_bytes()
    again = live_avatar(*bulk, cwd=tmp_path)
    assert (again.returncode, "2 made before" in again.stdout) == (0, True)


def test_a_manifest_is_validated_and_planned_without_a_gpu_or_ray(live_avatar: RunCli, tmp_path: Path) -> None:
    Image.new("RGB", (512, 512), "gray").save(tmp_path / "me.png")
    write_voice(tmp_path / "voice.wav", 0.6)
    row = {"custom_id": "a", "image": "me.png", "audio": "voice.wav", "prompt": PROMPT}
    rows = [row, {**row, "custom_id": "b", "size": "1280*720", "preset": "socail"}, {**row, "custom_id": "A"}]
    (tmp_path / "manifest.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    checked = live_avatar("bulk", "validate", "manifest.jsonl", *CPU, cwd=tmp_path)
    plan = json.loads(checked.stdout)
    assert (checked.returncode, plan["good"], plan["bad"]) == (3, 1, {"ROW_INVALID": 1, "DUPLICATE_ID": 1})
    assert "did you mean social" in checked.stderr
    big = live_avatar("bulk", "validate", "manifest.jsonl", "--gpus=24", "--checkpoint=ckpt", cwd=tmp_path)
    assert json.loads(big.stdout)["bad"]["NEVER_FITS"] == 2  # 704*384 on one card of 24 GB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.jsonl", "me.png", "voice.wav"]


def test_flags_that_contradict_each_other_are_refused(live_avatar: RunCli, tmp_path: Path) -> None:
    cases = {
        ("run", "--out=o"): "either a manifest or --audio-dir",
        ("run", "m.jsonl", "--out=o", "--image=me.png"): "--image: only with --audio-dir",
        ("run", "m.jsonl", "--out=o", "--pool=serve", "--layout=single"): "--layout: only with --pool own",
        ("run", "m.jsonl", "--out=o", "--url=http://x"): "--url: only with --pool serve",
        ("run", "queue", "--out=o", "--watch", "--on-invalid=abort"): "--on-invalid abort with --watch",
        ("run", "m.jsonl", "--out=o"): "m.jsonl",
        ("cancel", "nowhere"): "no job works in",
    }
    for words, message in cases.items():
        ended = live_avatar("bulk", *words, cwd=tmp_path)
        assert (ended.returncode, message in ended.stderr) == (2, True), (words, ended.stderr)
