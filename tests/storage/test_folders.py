"""Folders of every kind: what one promises, all keep."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app.errors import InputNotFoundError, InvalidRequestError
from serve_app.storage.base import Folder
from serve_app.storage.folders import is_remote, join, open_folder, parent_of, split_uri
from serve_app.storage.local_folder import LocalFolder
from tests.storage.s3_servers import S3Server, use

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
ODD_NAMES = ["a b/ü+%&=#?.json", "портрет/声音.wav", "...", "a\\b", "quote'\".txt"]
NO_NAMES = ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\0b", "\ud800"]


def names(folder: Folder, prefix: str = "") -> list[str]:
    return [found.name for found in folder.list(prefix)]


def file_of(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "source"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.json", "a/b/c.json", *ODD_NAMES])
def test_what_is_written_is_read(folder: Folder, name: str) -> None:
    folder.write(name, b"content")
    stored = folder.read(name)
    assert stored is not None
    assert stored.content == b"content"
    assert [found.name for found in folder.list()] == [name]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_is_refused_by_every_call(tmp_path: Path, name: str) -> None:
    folder = LocalFolder(tmp_path / "folder")
    calls = [
        lambda: folder.read(name),
        lambda: folder.write(name, b""),
        lambda: folder.write_if(name, b"", replaces=None),
        lambda: folder.put(file_of(tmp_path, b""), name),
        lambda: folder.copy("a", name),
        lambda: folder.fetch(name, tmp_path / "target"),
        lambda: folder.open(name),
        lambda: folder.stat(name),
        lambda: folder.delete(name),
    ]
    folder.write("a", b"")
    for call in calls:
        with pytest.raises(InvalidRequestError, match="is no name of a file in a folder"):
            call()


@pytest.mark.parametrize("name", [name for name in NO_NAMES if name])
def test_a_bucket_refuses_the_same_names(moto: S3Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    use(moto, monkeypatch)
    with pytest.raises(InvalidRequestError, match="is no name of a file in a folder"):
        open_folder("s3://bucket/prefix").write(name, b"")


def test_what_is_not_there_is_none_or_an_input_that_is_not_found(folder: Folder, tmp_path: Path) -> None:
    folder.write("a/b", b"x")
    for name in ("a", "c", "a/c", "a/b/c"):
        assert folder.read(name) is None
        for call in (folder.stat, folder.open, lambda name: folder.fetch(name, tmp_path / "target")):
            with pytest.raises(InputNotFoundError) as missing:
                call(name)
            assert f'there is no {"" if "://" in folder.uri() else "file "}"{folder.uri(name)}"' in str(missing.value)
    assert not (tmp_path / "target").exists()


def test_versions_tell_changes_and_nothing_else(folder: Folder) -> None:
    folder.write("a", b"one")
    first = folder.read("a")
    assert first is not None
    assert first.version == folder.stat("a").version == next(folder.list()).version
    folder.write("a", b"two")
    assert folder.stat("a").version != first.version


def test_a_folder_lists_in_the_order_of_whole_names(folder: Folder) -> None:
    written = ["Z", "a-b/x", "a.txt", "a/x", "a/y/z", "ab", "ä"]
    for name in reversed(written):
        folder.write(name, name.encode())
    assert names(folder) == written
    assert [found.num_bytes for found in folder.list()] == [len(name.encode()) for name in written]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("row1/", ["row1/a", "row1/b/c"]), ("row1", ["row1/a", "row1/b/c", "row10/a"]), ("row1/b/", ["row1/b/c"])],
)
def test_a_prefix_chooses_names_by_their_beginning(folder: Folder, prefix: str, expected: list[str]) -> None:
    for name in ("row1/a", "row1/b/c", "row10/a", "other"):
        folder.write(name, b"")
    assert names(folder, prefix) == expected
    assert names(folder, "nothing/") == []


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["other", "row"]),
        ("row", ["row"]),
        ("row1", []),
        ("row1/", ["row1/a", "row1/b.c"]),
        ("row1/b", ["row1/b.c"]),
        ("row1/b/", ["row1/b/c"]),
    ],
)
def test_a_list_that_is_not_deep_has_the_files_of_one_folder(folder: Folder, prefix: str, expected: list[str]) -> None:
    for name in ("row1/a", "row1/b/c", "row1/b.c", "row10/a", "row", "other", "p/q/r"):
        folder.write(name, name.encode())
    found = list(folder.list(prefix, is_deep=False))
    assert [(one.name, one.num_bytes) for one in found] == [(name, len(name)) for name in expected]
    assert found == [one for one in folder.list(prefix) if one.name in expected]


@pytest.mark.parametrize("prefix", ["/", "a//", "../", "a/../", "\0"])
def test_a_prefix_that_no_name_has_is_refused(folder: Folder, prefix: str) -> None:
    with pytest.raises(InvalidRequestError):
        list(folder.list(prefix))
    with pytest.raises(InvalidRequestError):
        folder.clean(prefix)


def test_an_empty_folder_is_no_error(folder: Folder) -> None:
    assert names(folder) == []
    assert folder.clean() == 0
    folder.delete("a/b")


@pytest.mark.parametrize("num_bytes", [0, 1, (5 << 20) + 7])
def test_files_come_back_as_they_were_put(folder: Folder, tmp_path: Path, num_bytes: int) -> None:
    content = random.Random(1).randbytes(num_bytes)
    folder.put(file_of(tmp_path, content), "videos/a.mp4")
    folder.fetch("videos/a.mp4", tmp_path / "new" / "a.mp4")
    assert (tmp_path / "new" / "a.mp4").read_bytes() == content
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]
    assert [(found.name, found.num_bytes) for found in folder.list()] == [("videos/a.mp4", num_bytes)]
    assert folder.clean() == 0


def test_a_file_that_is_put_or_fetched_replaces_an_earlier_one(folder: Folder, tmp_path: Path) -> None:
    folder.write("a", b"an earlier and longer file")
    folder.put(file_of(tmp_path, b"new"), "a")
    (tmp_path / "target").write_bytes(b"another earlier file")
    folder.fetch("a", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"new"


def test_putting_what_is_not_there_says_so(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="there is no file"):
        folder.put(tmp_path / "missing", "a")
    assert names(folder) == []


def test_a_copy_has_the_bytes_and_outlives_the_original(folder: Folder) -> None:
    folder.write("a", b"content")
    folder.write("b/c", b"earlier")
    folder.copy("a", "b/c")
    folder.copy("a", "a")
    folder.delete("a")
    stored = folder.read("b/c")
    assert stored is not None
    assert stored.content == b"content"
    assert names(folder) == ["b/c"]
    with pytest.raises(InputNotFoundError):
        folder.copy("a", "d")


def test_a_file_is_read_anywhere(folder: Folder, tmp_path: Path) -> None:
    content = random.Random(2).randbytes((5 << 20) + 11)
    folder.put(file_of(tmp_path, content), "a")
    with folder.open("a") as file:
        for start, num_bytes in [
            (0, 10),
            (5_000_000, 100),
            (3, 5 << 20),
            (len(content) - 5, 50),
            (len(content) + 9, 1),
        ]:
            assert file.seek(start) == start
            assert file.read(num_bytes) == content[start : start + num_bytes]
        assert file.seek(-3, os.SEEK_END) == len(content) - 3
        assert file.read() == content[-3:]
        assert file.seek(0) == 0
        assert file.read() == content


def test_lines_of_a_file_and_members_of_an_archive_are_read_without_fetching_it(folder: Folder, tmp_path: Path) -> None:
    lines = [b'{"custom_id": "%d"}\n' % number for number in range(5000)]
    folder.write("m.jsonl", b"".join(lines))
    with folder.open("m.jsonl") as file:
        assert list(file) == lines
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b/c.txt", "member")
    folder.put(tmp_path / "a.zip", "a.zip")
    with folder.open("a.zip") as file, zipfile.ZipFile(file) as archive:
        assert archive.read("b/c.txt") == b"member"


def test_an_empty_file_reads_as_nothing(folder: Folder) -> None:
    folder.write("a", b"")
    with folder.open("a") as file:
        assert file.read() == b""
    stored = folder.read("a")
    assert stored is not None
    assert stored.content == b""


def test_a_deleted_file_is_gone(folder: Folder) -> None:
    folder.write("a/b", b"x")
    folder.delete("a/b")
    folder.delete("a/b")
    assert folder.read("a/b") is None
    assert names(folder) == []


def test_write_if_takes_a_free_name_once(folder: Folder) -> None:
    assert folder.write_if("a/b", b"first", replaces=None)
    assert not folder.write_if("a/b", b"second", replaces=None)
    stored = folder.read("a/b")
    assert stored is not None
    assert stored.content == b"first"


def test_write_if_replaces_the_version_it_names_and_no_other(folder: Folder) -> None:
    assert not folder.write_if("a", b"x", replaces="some version")
    folder.write("a", b"one")
    version = folder.stat("a").version
    assert folder.write_if("a", b"two", replaces=version)
    assert not folder.write_if("a", b"three", replaces=version)
    newer = folder.stat("a").version
    folder.delete("a")
    assert not folder.write_if("a", b"four", replaces=newer)
    assert names(folder) == []


@pytest.mark.parametrize("folder", ["local", "moto"], indirect=True)
def test_of_many_that_want_a_free_name_one_gets_it(folder: Folder) -> None:
    with ThreadPoolExecutor(8) as threads:
        for number in range(5):
            name = f"lock{number}"
            claims = [threads.submit(folder.write_if, name, b"%d" % k, replaces=None) for k in range(8)]
            [winner] = [k for k, claim in enumerate(claims) if claim.result()]
            stored = folder.read(name)
            assert stored is not None
            assert stored.content == b"%d" % winner


@pytest.mark.parametrize("folder", ["local", "moto"], indirect=True)
def test_no_update_is_lost_between_many_writers(folder: Folder) -> None:
    folder.write("count", b"0")

    def count_up(_: int) -> None:
        while True:
            stored = folder.read("count")
            assert stored is not None
            if folder.write_if("count", b"%d" % (int(stored.content) + 1), replaces=stored.version):
                return

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count_up, range(20)))
    stored = folder.read("count")
    assert stored is not None
    assert stored.content == b"20"
    assert names(folder) == ["count"]


def test_readers_see_one_file_or_the_other_while_it_is_replaced(folder: Folder) -> None:
    wholes = {letter * 50_000 for letter in (b"a", b"b")}
    folder.write("a", next(iter(wholes)))

    def read(_: int) -> bytes:
        stored = folder.read("a")
        assert stored is not None
        return stored.content

    with ThreadPoolExecutor(3) as threads:
        seen = threads.map(read, range(60))
        for content in [*wholes] * 15:
            folder.write("a", content)
        assert set(seen) <= wholes


def test_a_path_opens_a_folder_of_this_machine(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("a", b"x")
    assert folder.uri("a") == str(tmp_path / "a")
    assert folder.uri() == str(tmp_path)
    assert repr(folder) == f"LocalFolder({str(tmp_path)!r})"


@pytest.mark.parametrize(
    ("uri", "name", "expected"),
    [
        ("s3://b", "", "s3://b"),
        ("s3://b/", "a", "s3://b/a"),
        ("s3://b/x/y", "", "s3://b/x/y"),
        ("s3://b/x/y/", "a/b", "s3://b/x/y/a/b"),
    ],
)
def test_a_bucket_tells_its_uris(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, uri: str, name: str, expected: str
) -> None:
    use(moto, monkeypatch)
    assert open_folder(uri).uri(name) == expected


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("https://host/a", "is neither a path nor s3://"),
        ("S3://bucket/a", "is neither a path nor s3://"),
        ("file:///a", "is neither a path nor s3://"),
        ("s3://", "names no bucket"),
        ("s3:///a", "names no bucket"),
        ("s3://../a", "names no bucket"),
        ("s3://bucket name/a", "names no bucket"),
        ("s3://bucket//a", "is no name"),
        ("s3://bucket/a/../b", "is no name"),
        ("", "is no path"),
        ("a\0b", "is no path"),
        ("\ud800", "is no path"),
    ],
)
def test_refuses_what_is_no_folder(uri: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        open_folder(uri)


@pytest.mark.parametrize(
    ("uri", "folder", "name"),
    [
        ("s3://b/a/m.jsonl", "s3://b/a", "m.jsonl"),
        ("s3://b/m.jsonl", "s3://b", "m.jsonl"),
        ("s3://b/a/c/", "s3://b/a", "c"),
        ("/a/b/m.jsonl", "/a/b", "m.jsonl"),
        ("/m.jsonl", "/", "m.jsonl"),
        ("m.jsonl", ".", "m.jsonl"),
        ("../a/m.jsonl", "../a", "m.jsonl"),
    ],
)
def test_a_uri_is_a_folder_and_a_name(uri: str, folder: str, name: str) -> None:
    assert split_uri(uri) == (folder, name)
    assert parent_of(uri) == folder
    assert is_remote(uri) == uri.startswith("s3://")
    assert split_uri(join(folder, name)) == (folder, name)


@pytest.mark.parametrize("uri", ["s3://b", "s3://b/", "/", ".", "..", "a/.."])
def test_what_names_no_file_is_not_split(uri: str) -> None:
    with pytest.raises(InvalidRequestError, match="names no file"):
        split_uri(uri)


@pytest.mark.parametrize(
    ("base", "written", "expected"),
    [
        ("s3://b/a", "c.png", "s3://b/a/c.png"),
        ("s3://b", "./c.png", "s3://b/c.png"),
        ("s3://b/a/d", "../x/c.png", "s3://b/a/x/c.png"),
        ("s3://b/a", "../../../c.png", "s3://b/c.png"),
        ("s3://b/a", "//x//c.png", "//x//c.png"),
        ("s3://b/a", "/full/c.png", "/full/c.png"),
        ("/a", "s3://b/c.png", "s3://b/c.png"),
        ("/a", "c/d.png", "/a/c/d.png"),
        ("/a", "../d.png", "/a/../d.png"),
        ("a", "./d.png", "a/d.png"),
        ("/a", "/d.png", "/d.png"),
    ],
)
def test_what_is_written_relative_to_a_folder_is_found(base: str, written: str, expected: str) -> None:
    assert join(base, written) == expected


WITHOUT_BOTO3 = """
import sys
sys.modules["boto3"] = None
from serve_app.errors import AvatarError
from serve_app.storage.folders import open_folder
open_folder("/")
try:
    open_folder("s3://bucket")
except AvatarError as error:
    print(error)
"""


def test_without_the_packages_of_s3_folders_work_and_buckets_tell_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BOTO3], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.stderr == ""
    assert done.stdout == 'boto3 is not installed; install the s3\'s packages: pip install "live-avatar-serve[s3]"\n'
