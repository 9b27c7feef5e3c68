"""The shape of the repository: what stands at the top, and how large a file may grow."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("serve_app", "ray_cluster")
MAX_LINES = 400
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "k8s",
    "load_tests",
    "pyproject.toml",
    "ray_cluster",
    "serve_app",
    "tests",
}


def repository_files() -> list[Path]:
    """Returns the files of the repository, relative to its root: tracked ones, or without git all not ignored."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
        )
        return [Path(name) for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    return walked_files(ROOT)


def walked_files(root: Path) -> list[Path]:
    """Returns the files below `root`, relative to it, without those that its .gitignore names."""
    ignored = [line.rstrip("/") for line in (root / ".gitignore").read_text().splitlines() if line] + [".git"]

    def kept(names: list[str]) -> list[str]:
        return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)]

    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = kept(subfolders)
        files += [(Path(folder) / name).relative_to(root) for name in kept(names)]
    return files


def package_sources() -> list[Path]:
    sources = [ROOT / path for path in repository_files() if path.parts[0] in PACKAGES and path.suffix == ".py"]
    assert sources, "no source files found"
    return sources


def test_the_top_level_holds_only_what_belongs_there() -> None:
    assert {path.parts[0] for path in repository_files()} - TOP_LEVEL == set()


def test_package_markers_are_empty() -> None:
    filled = [path for path in package_sources() if path.name == "__init__.py" and path.stat().st_size]
    assert filled == []


def test_every_source_folder_is_a_package() -> None:
    folders = {path.parent for path in package_sources()}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_no_source_file_outgrows_a_reader() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in package_sources()}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


def test_without_git_the_tree_is_walked_past_what_gitignore_names(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text(".venv/\n*.egg-info/\n")
    for name in (".venv/big.py", "x.egg-info/PKG-INFO", ".git/HEAD", "serve_app/task.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert set(walked_files(tmp_path)) == {Path(".gitignore"), Path("serve_app/task.py")}
