"""Every command that the README shows works: make targets exist, live-avatar lines parse, flags are all told."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from serve_app.cli import build_parser
from serve_app.schemas.presets import PRESETS
from serve_app.schemas.request import complete
from serve_app.troubleshooting import TROUBLES, remedy_for

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_commands(text: str) -> list[list[str]]:
    """Returns the commands of all shell blocks of a Markdown text, split into words, without comments."""
    blocks = re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def section(title: str) -> str:
    """Returns the text of the README's section `title`."""
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize("words", shell_commands(README), ids=lambda words: " ".join(words[:2]))
def test_every_command_of_the_readme_exists(words: list[str]) -> None:
    match words:
        case ["make", *targets]:
            assert set(targets) <= make_targets()
        case ["live-avatar" | ".venv/bin/live-avatar", *arguments]:
            build_parser().parse_args(arguments)
        case [".venv/bin/serve", "deploy", path]:  # run by tests/service/test_deploy.py
            assert (ROOT / path).is_file()
        case ["ray", "job", *arguments]:  # run by tests/bulk_jobs/test_submit.py
            if "--" in arguments:
                build_parser().parse_args(arguments[arguments.index("--") + 2 :])
        case ["curl", *_]:  # run by tests/service/test_service.py
            pass
        case _:
            pytest.fail(f"no test knows how to check: {shlex.join(words)}")


def test_a_fresh_machine_needs_two_commands() -> None:
    assert shell_commands(section("Quick start")) == [["make", "demo"], ["make", "test"]]


def test_the_flag_table_tells_every_flag_of_render(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["render", "--help"])
    offered = {flag.replace("_", "-") for flag in re.findall(r"--[a-z][a-z_-]*", capsys.readouterr().out)}
    told = set(re.findall(r"^\| `(--[a-z-]+)` \|", section("Render your own"), flags=re.MULTILINE))
    assert told == offered - {"--help"}


def test_the_preset_table_tells_every_preset_as_it_is() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|(.*)\|$", section("Render your own"), flags=re.MULTILINE)
    assert {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows} == {
        preset.name: [
            str(preset.size),
            f"{preset.num_clip}",
            f"{preset.infer_frames}",
            f"{preset.sample_steps}",
            preset.description,
        ]
        for preset in PRESETS.values()
    }


def test_every_message_of_the_table_of_troubles_is_known() -> None:
    symptoms = re.findall(r"^\| (`.*?`) \|", section("When something goes wrong"), flags=re.MULTILINE)
    messages = [message for symptom in symptoms for message in re.findall(r"`([^`]+)`", symptom)]
    assert [message for message in messages if remedy_for(message) is None] == []
    told = {remedy_for(message) for message in messages}
    assert {trouble.cause for trouble in TROUBLES if trouble.remedy not in told} == {
        "a GPU that failed",
        "a process of the run died",
    }


@pytest.mark.parametrize("task", re.findall(r"^```json\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE))
def test_every_task_file_shown_is_a_whole_request(task: str) -> None:
    assert complete(json.loads(task), defaults={}).num_clip == 50


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_relative_link_leads_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("target", re.findall(r"`make ([a-z]+)", README + (ROOT / "CONTRIBUTING.md").read_text()))
def test_every_make_target_that_is_named_exists(target: str) -> None:
    assert target in make_targets()
