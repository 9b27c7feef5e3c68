"""Imports by path, and what is said where torch, Ray or the service's packages are missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ray_cluster.nvml import NoGpus
from serve_app.deployments import local_gang
from serve_app.errors import AvatarError
from serve_app.planning.layout import ParallelLayout
from serve_app.rendering.import_path import EXTRAS, check_model_packages, import_object
from serve_app.schemas.config import AppConfig
from tests.rendering.test_frames import a_task


def test_finds_what_is_at_the_path() -> None:
    assert import_object("pathlib:Path") is Path


@pytest.mark.parametrize(
    ("package", "extra"), [(package, extra) for extra, packages in EXTRAS.items() for package in packages]
)
def test_a_machine_without_a_package_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    (tmp_path / f"needs_{package}.py").write_text(f"import {package}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(AvatarError, match=rf"{package} is not installed.*live-avatar-serve\[{extra}\]"):
        import_object(f"needs_{package}:anything")


def test_a_gang_is_refused_without_ray_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("ray_cluster.gang", "serve_app.deployments."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AvatarError, match=r"ray is not installed.*live-avatar-serve\[cluster\]"):
        import_object("serve_app.deployments.local_gang:LocalGangSource")


def test_a_gang_is_refused_without_torch_before_ray_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_gang, "local_gpus", lambda: NoGpus("no driver", is_fault=False))
    monkeypatch.setattr(local_gang, "local_cluster", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    config = AppConfig(cache_dir=tmp_path)
    with (
        local_gang.LocalGangSource(
            ParallelLayout(stages=2), checkpoint="tiny", config=config, on_start=print
        ) as source,
        pytest.raises(AvatarError, match=r"torch is not installed.*live-avatar-serve\[model\]"),
    ):
        next(source.frames(a_task(), is_cancelled=lambda: False))


def test_another_missing_module_is_our_own_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_nothing_known.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_object("needs_nothing_known:anything")


def test_the_packages_of_the_model_are_looked_for_without_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    check_model_packages()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(AvatarError, match=r"tokenizers is not installed.*live-avatar-serve\[model\]"):
        check_model_packages()
