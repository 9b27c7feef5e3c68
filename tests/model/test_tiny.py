"""The built-in model: always the same, made once, complete."""

from __future__ import annotations

import hashlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from serve_app.errors import OutputError
from serve_app.model import random_checkpoint
from serve_app.model.full_checkpoint import FullCheckpoint
from serve_app.model.tiny import TINY, tiny_checkpoint

TIMEOUT_S = 120


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_machines_make_the_same_files(tmp_path: Path) -> None:
    first, second = (digests(tiny_checkpoint(tmp_path / name)) for name in "ab")
    assert first == second
    assert len(first) > 8


def test_it_is_made_once(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert tiny_checkpoint(tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_two_processes_may_make_it_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        made = list(pool.map(tiny_checkpoint, [tmp_path, tmp_path], timeout=TIMEOUT_S))
    assert made[0] == made[1]
    assert list(tmp_path.iterdir()) == [made[0]]


def test_a_failure_leaves_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(random_checkpoint, "_write_tokenizer", fail)
    with pytest.raises(OutputError, match=r"no space.*XDG_CACHE_HOME"):
        tiny_checkpoint(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_its_tokenizer_ends_prompts_and_knows_no_limits_but_the_length(tmp_path: Path) -> None:
    tokenize = FullCheckpoint(tiny_checkpoint(tmp_path)).tokenizer(text_len=16)
    ids = tokenize("a friendly woman in a green sweater")
    assert ids[-1] == 1
    assert len(tokenize("word " * 100)) == 16
    assert tokenize("word " * 100)[-1] == 1
    assert tokenize("\N{GRINNING FACE} ü 漢字").max() < TINY.text.vocab
