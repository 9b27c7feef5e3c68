"""Local folders: atomic, durable, and cleaned of what killed writers left."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve_app.errors import InputNotFoundError, StorageError
from serve_app.storage.disk import COPY_BYTES, is_unfinished, unfinished_in
from serve_app.storage.local import local_file
from serve_app.storage.local_folder import LocalFolder

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
OTHER_MACHINE, EARLIER_VERSION = f".{'0' * 24}.part", f".{'1' * 16}.part"
TWO_HOURS_S = 7200

PUT = """
import sys
from pathlib import Path
from serve_app.storage.local_folder import LocalFolder
LocalFolder(Path(sys.argv[1])).put(Path(sys.argv[2]), "row1/a.mp4")
"""
RENDER = """
import sys
from pathlib import Path
from serve_app.storage.local import local_file
with local_file(Path(sys.argv[1]) / "row1" / "a.mp4") as video, open(sys.argv[2], "rb") as fragments:
    video.append(b"half a video")
    video.append(fragments.read())
    video.commit()
"""


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    return LocalFolder(tmp_path / "folder")


def files_below(path: Path) -> list[Path]:
    return sorted(found for found in path.rglob("*") if found.is_file())


def unfinished_below(path: Path) -> list[Path]:
    return [found for found in files_below(path) if is_unfinished(found.name)]


def soon(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def stuck_writer(program: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a writer that has written something, and waits for the rest of its source."""
    os.mkfifo(tmp_path / "source")
    arguments = [sys.executable, "-c", program, str(tmp_path / "folder"), str(tmp_path / "source")]
    with subprocess.Popen(arguments, cwd=ROOT) as writer, (tmp_path / "source").open("wb") as source:
        try:
            source.write(b"x" * (COPY_BYTES + 1))
            source.flush()
            soon(lambda: [path for path in unfinished_below(tmp_path) if path.stat().st_size])
            yield writer
        finally:
            writer.kill()


@pytest.mark.parametrize("program", [PUT, RENDER], ids=["put", "local_file"])
def test_clean_removes_what_a_killed_writer_left_and_nothing_of_one_that_writes(
    folder: LocalFolder, tmp_path: Path, program: str
) -> None:
    folder.write("row1/other", b"whole")
    with stuck_writer(program, tmp_path) as writer:
        [unfinished] = unfinished_below(tmp_path)
        assert folder.clean() == 0
        assert unfinished.exists()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert [found.name for found in folder.list()] == ["row1/other"]
    assert folder.clean("row2/") == 0
    assert folder.clean("row1/") == 1
    assert files_below(tmp_path) == [tmp_path / "folder" / "row1" / "other"]


def test_clean_leaves_the_file_of_a_writer_in_this_process(folder: LocalFolder, tmp_path: Path) -> None:
    target = tmp_path / "folder" / "a.mp4"
    with local_file(target) as video:
        video.append(b"half")
        assert folder.clean() == 0
        video.commit()
    assert target.read_bytes() == b"half"


@pytest.mark.parametrize("name", [OTHER_MACHINE, EARLIER_VERSION])
@pytest.mark.parametrize(("age_s", "removed"), [(60, 0), (TWO_HOURS_S, 1)])
def test_what_others_left_goes_once_it_is_silent_for_long(
    folder: LocalFolder, tmp_path: Path, name: str, age_s: int, removed: int
) -> None:
    path = tmp_path / "folder" / "row1" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    then = time.time() - age_s
    os.utime(path, (then, then))
    assert folder.clean() == removed
    assert path.exists() == (not removed)


@pytest.mark.parametrize("name", [".hidden", ".part", ".1.mp4.part", "0000000000000000.part", ".0123456789abcdef.mp4"])
def test_what_only_looks_unfinished_is_a_file_like_others(folder: LocalFolder, name: str) -> None:
    folder.write(name, b"x")
    assert folder.clean() == 0
    assert [found.name for found in folder.list()] == [name]


def test_a_writer_whose_file_is_cleaned_before_it_is_locked_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = []

    def late_lock(*_: object) -> None:
        locks.append(True)
        if len(locks) == 1:
            [path] = files_below(tmp_path)
            path.unlink()

    monkeypatch.setattr("fcntl.flock", late_lock)
    with unfinished_in(tmp_path) as part:
        part.append(b"x")
        assert part.path.read_bytes() == b"x"
    assert len(locks) == 2


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_a_disk_without_links_and_locks_is_asked_just_before(
    folder: LocalFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    monkeypatch.setattr("fcntl.flock", no_locks)
    assert folder.write_if("a", b"one", replaces=None)
    assert not folder.write_if("a", b"two", replaces=None)
    version = folder.stat("a").version
    assert folder.write_if("a", b"three", replaces=version)
    assert not folder.write_if("a", b"four", replaces=version)
    folder.copy("a", "b")
    assert [(found.name, found.num_bytes) for found in folder.list()] == [("a", 5), ("b", 5)]


def test_on_a_disk_without_locks_age_alone_tells_what_is_abandoned(
    folder: LocalFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", no_locks)
    (tmp_path / "folder").mkdir()
    with unfinished_in(tmp_path / "folder") as part:
        part.append(b"half")
        assert folder.clean() == 0
        then = time.time() - TWO_HOURS_S
        os.utime(part.path, (then, then))
        assert folder.clean() == 1


def test_a_copy_costs_no_space(folder: LocalFolder, tmp_path: Path) -> None:
    folder.write("a", b"content")
    folder.copy("a", "b")
    assert (tmp_path / "folder" / "a").samefile(tmp_path / "folder" / "b")
    folder.write("a", b"new")
    assert (tmp_path / "folder" / "b").read_bytes() == b"content"


def test_versions_are_as_fine_as_the_clock(folder: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = iter([1_700_000_000_000_000_001, 1_700_000_000_000_000_002])
    monkeypatch.setattr("time.time_ns", lambda: next(now_ns))
    folder.write("a", b"same")
    first = folder.stat("a").version
    folder.write("a", b"same")
    assert first.startswith("1700000000000000001-4-")
    assert folder.stat("a").version.startswith("1700000000000000002-4-")


def test_a_file_that_is_replaced_while_write_if_waits_for_it_is_left_alone(folder: LocalFolder, tmp_path: Path) -> None:
    folder.write("a", b"one")
    version = folder.stat("a").version
    with ThreadPoolExecutor(1) as threads, (tmp_path / "folder" / "a").open("rb") as present:
        fcntl.flock(present, fcntl.LOCK_EX)
        writing = threads.submit(folder.write_if, "a", b"late", replaces=version)
        soon(lambda: [path for path in unfinished_below(tmp_path) if path.stat().st_size])
        folder.write("a", b"two")
        fcntl.flock(present, fcntl.LOCK_UN)
        assert not writing.result(TIMEOUT_S)
    assert (tmp_path / "folder" / "a").read_bytes() == b"two"


def test_links_to_files_and_folders_are_followed_and_circles_are_not(folder: LocalFolder, tmp_path: Path) -> None:
    folder.write("a/b", b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "c").write_bytes(b"four")
    for name, target in [("up", ".."), ("to", outside), ("file", outside / "c"), ("nowhere", "missing")]:
        (tmp_path / "folder" / "a" / name).symlink_to(target)
    assert [(found.name, found.num_bytes) for found in folder.list()][:3] == [("a/b", 1), ("a/file", 4), ("a/to/c", 4)]
    assert len(list(folder.list())) <= 6


def test_a_list_that_is_not_deep_looks_into_no_folder_below(
    folder: LocalFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "lost+found/b", "in/c", "in/deep/d"):
        folder.write(name, b"")
    scanned: list[Path] = []
    really = os.scandir

    def scandir(path: Path) -> Iterator[os.DirEntry[str]]:
        scanned.append(path.relative_to(tmp_path / "folder"))
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [found.name for found in folder.list(is_deep=False)] == ["a"]
    assert [found.name for found in folder.list("in/", is_deep=False)] == ["in/c"]
    assert scanned == [Path(), Path(), Path("in")]


def test_what_is_no_regular_file_is_not_listed_nor_found(folder: LocalFolder, tmp_path: Path) -> None:
    folder.write("a/b", b"x")
    os.mkfifo(tmp_path / "folder" / "pipe")
    assert [found.name for found in folder.list()] == ["a/b"]
    for name in ("pipe", "a"):
        with pytest.raises(InputNotFoundError):
            folder.stat(name)


@pytest.mark.parametrize(
    ("name", "reason"), [("file/a", "Not a directory"), ("v" * 300, "File name too long"), ("a", "Is a directory")]
)
def test_a_place_that_cannot_be_written_says_why(folder: LocalFolder, tmp_path: Path, name: str, reason: str) -> None:
    folder.write("file", b"x")
    folder.write("a/b", b"x")
    (tmp_path / "source").write_bytes(b"x")
    for write in (
        lambda: folder.write(name, b"x"),
        lambda: folder.put(tmp_path / "source", name),
        lambda: folder.copy("file", name),
    ):
        with pytest.raises(StorageError) as refused:
            write()
        place = tmp_path / "folder" / name
        assert str(refused.value) == (
            f'"{place}" cannot be written: {reason}; choose a folder that is writable and has free space'
        )
    assert files_below(tmp_path / "folder") == [tmp_path / "folder" / "a" / "b", tmp_path / "folder" / "file"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from serve_app.errors import StorageError
from serve_app.storage.local_folder import LocalFolder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = LocalFolder(Path(sys.argv[1]) / "folder")
source = Path(sys.argv[1]) / "source"
for write in (
    lambda: folder.write("a", bytes(200_000)),
    lambda: folder.write_if("a", bytes(200_000), replaces=None),
    lambda: folder.put(source, "a"),
    lambda: LocalFolder(source.parent).fetch("source", Path(sys.argv[1]) / "folder" / "a"),
):
    try:
        write()
    except StorageError as error:
        print(error.message)
"""


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(200_000))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f'"{tmp_path}/folder/a" cannot be written: File too large'] * 4
    assert files_below(tmp_path) == [tmp_path / "source"]
