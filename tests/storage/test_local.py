"""Local videos: there when whole, and nothing there otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.errors import OutputError
from serve_app.storage.local import local_file

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60


def write(target: Path, *fragments: bytes) -> str:
    with local_file(target) as video:
        for fragment in fragments:
            video.append(fragment)
        return video.commit()


def give_up(target: Path, error: BaseException) -> None:
    with local_file(target) as video:
        video.append(b"half a video")
        raise error


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("fragments", [(b"init", b"one", b"two"), (b"",), ()])
def test_a_committed_video_holds_its_fragments_in_order(tmp_path: Path, fragments: tuple[bytes, ...]) -> None:
    location = write(tmp_path / "video.mp4", *fragments)
    assert location == str(tmp_path / "video.mp4")
    assert Path(location).read_bytes() == b"".join(fragments)
    assert files_below(tmp_path) == {"video.mp4"}


def test_a_committed_video_replaces_an_earlier_one(tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    target.write_bytes(b"an earlier and much longer video")
    write(target, b"new")
    assert target.read_bytes() == b"new"


def test_an_earlier_video_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    target.write_bytes(b"earlier")
    with local_file(target) as video:
        video.append(b"new")
        assert target.read_bytes() == b"earlier"
    assert target.read_bytes() == b"earlier"


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "video.mp4", b"new")
    assert files_below(tmp_path) == {"a", "a/b", "a/b/video.mp4"}


def test_a_name_as_long_as_the_file_system_allows_is_no_trouble(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    target = tmp_path / ("v" * (longest - 4) + ".mp4")
    write(target, b"new")
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OutputError("no", remedy="none"), KeyboardInterrupt(), SystemExit(143), OSError()])
def test_without_a_commit_neither_file_nor_made_folder_stays(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        give_up(tmp_path / "a" / "b" / "video.mp4", error)
    assert files_below(tmp_path) == set()


def test_leaving_in_peace_without_a_commit_leaves_nothing_either(tmp_path: Path) -> None:
    with local_file(tmp_path / "a" / "video.mp4") as video:
        video.append(b"half a video")
    assert files_below(tmp_path) == set()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt):
        give_up(tmp_path / "a" / "b" / "video.mp4", KeyboardInterrupt())
    assert files_below(tmp_path) == {"a"}


def test_a_made_folder_stays_when_somebody_else_has_put_something_in_it(tmp_path: Path) -> None:
    with local_file(tmp_path / "a" / "b" / "video.mp4"):
        (tmp_path / "a" / "other.txt").touch()
    assert files_below(tmp_path) == {"a", "a/other.txt"}


def test_fragments_are_on_disk_as_soon_as_they_are_appended(tmp_path: Path) -> None:
    with local_file(tmp_path / "video.mp4") as video:
        [unfinished] = tmp_path.iterdir()
        for num_fragments in (1, 2, 3):
            video.append(b"fragment")
            assert unfinished.read_bytes() == b"fragment" * num_fragments


def test_two_writers_of_one_video_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    with local_file(target) as first, local_file(target) as second:
        first.append(b"first ")
        second.append(b"second")
        first.append(b"still first")
        first.commit()
        assert target.read_bytes() == b"first still first"
        second.commit()
    assert target.read_bytes() == b"second"
    assert files_below(tmp_path) == {"video.mp4"}


def test_a_writer_that_gives_up_does_not_disturb_another(tmp_path: Path) -> None:
    with local_file(tmp_path / "a" / "video.mp4") as steady:
        with pytest.raises(KeyboardInterrupt):
            give_up(tmp_path / "a" / "video.mp4", KeyboardInterrupt())
        steady.append(b"steady")
        steady.commit()
    assert (tmp_path / "a" / "video.mp4").read_bytes() == b"steady"


def refusal(target: Path) -> str:
    """Returns what is said about a target that cannot be written."""
    with pytest.raises(OutputError) as refused, local_file(target):
        pytest.fail("a place that cannot be written was opened")
    assert refused.value.param == "out"
    return str(refused.value)


def test_refuses_a_folder_and_keeps_it(tmp_path: Path) -> None:
    target = tmp_path / "video.mp4"
    target.mkdir()
    assert refusal(target) == f'"{target}" is a folder; name a file, for example video.mp4'
    assert files_below(tmp_path) == {"video.mp4"}


def test_refuses_a_pipe_and_keeps_it(tmp_path: Path) -> None:
    target = tmp_path / "pipe"
    os.mkfifo(target)
    assert refusal(target) == f'"{target}" is not a regular file; name a file, for example video.mp4'
    assert target.is_fifo()


@pytest.mark.parametrize("below", ["video.mp4", "a/video.mp4", "a/b/video.mp4"])
def test_refuses_a_place_below_a_regular_file(tmp_path: Path, below: str) -> None:
    ground = tmp_path / "file"
    ground.write_bytes(b"kept")
    assert refusal(ground / below) == f'"{ground}" is not a folder; choose a folder for the video'
    assert ground.read_bytes() == b"kept"


@pytest.mark.parametrize("name", ["v" * 300 + ".mp4", f"a/b/{'v' * 300}.mp4", f"a/b/{'f' * 300}/c/video.mp4"])
def test_refuses_names_that_the_file_system_does_not_allow(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name).startswith(f'"{tmp_path / name}" cannot be written: File name too long; ')
    assert files_below(tmp_path) == set()


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
from serve_app.errors import OutputError
from serve_app.storage.local import local_file

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with local_file(Path(sys.argv[1])) as video:
        for number in range(10):
            video.append(bytes(30_000))
            print(number)
        video.commit()
except OutputError as error:
    print(error)
"""


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a" / "video.mp4"
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(target)], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.stderr == ""
    *appended, refused = done.stdout.splitlines()
    assert appended == ["0", "1", "2"]
    assert (
        refused == f'"{target}" cannot be written: File too large; choose a folder that is writable and has free space'
    )
    assert files_below(tmp_path) == set()
