"""Imports by path, and what is said where torch is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from serve_app.errors import AvatarError
from serve_app.rendering.import_path import import_object


def test_finds_what_is_at_the_path() -> None:
    assert import_object("pathlib:Path") is Path


def test_a_machine_without_torch_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_torch.py").write_text("import torch")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(AvatarError, match=r"torch is not installed.*live-avatar-serve\[model\]"):
        import_object("needs_torch:anything")


def test_another_missing_module_is_our_own_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_nothing_known.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_object("needs_nothing_known:anything")
