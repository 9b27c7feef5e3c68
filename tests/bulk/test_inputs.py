"""Inputs: found, read once, and known by what is in them."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk import inputs
from serve_app.bulk.inputs import InputReader, checked_copy, local_copy
from serve_app.errors import (
    InputNotFoundError,
    InvalidRequestError,
    StorageError,
    UnavailableError,
    UnsupportedMediaError,
)
from serve_app.schemas.config import AppConfig, ImageLimits
from serve_app.storage.files import AudioFacts, ImageFacts
from serve_app.storage.local_folder import LocalFolder
from tests.bulk.folders import Bucket
from tests.bulk.rows import write_portrait, write_voice


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded, in their order."""
    log: list[Path] = []
    really = inputs.facts_of

    def facts_of(path: Path, *args: Any, **kwargs: Any) -> Any:
        log.append(path)
        return really(path, *args, **kwargs)

    monkeypatch.setattr(inputs, "facts_of", facts_of)
    return log


@pytest.fixture
def reader(tmp_path: Path) -> InputReader:
    return InputReader(AppConfig(), tmp_path)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket whose objects are the files of a folder."""
    root = tmp_path / "bucket"
    there = Bucket(root)

    def open_folder(uri: str) -> LocalFolder:
        if not uri.startswith("s3://"):
            return LocalFolder(Path(uri))
        assert f"{uri}/".startswith("s3://bucket/"), "somebody else's bucket"
        folder = Bucket(root / uri.removeprefix("s3://bucket").strip("/"))
        folder.broken = there.broken
        return folder

    monkeypatch.setattr(inputs, "_folder", open_folder)
    return there


def test_what_is_in_an_input_is_told_with_the_digest_of_its_bytes(tmp_path: Path, reader: InputReader) -> None:
    portrait = write_portrait(tmp_path / "me.png", width=300, height=200)
    voice = write_voice(tmp_path / "voice.wav", seconds=2.0)
    image = reader.read("me.png", base=str(tmp_path), kind="image")
    audio = reader.read("voice.wav", base=str(tmp_path), kind="audio")
    assert image.facts == ImageFacts(width=300, height=200)
    assert isinstance(audio.facts, AudioFacts)
    assert audio.facts.seconds == 2.0
    assert image.uri == str(portrait)
    assert audio.sha256 == hashlib.sha256(voice.read_bytes()).hexdigest()


def test_an_input_that_rows_share_is_read_once(tmp_path: Path, reader: InputReader, decoded: list[Path]) -> None:
    path = write_portrait(tmp_path / "me.png")
    first = reader.read("me.png", base=str(tmp_path), kind="image")
    assert reader.read(str(path), base="/elsewhere", kind="image") == first
    assert len(decoded) == 1


def test_an_input_that_changed_is_read_again(tmp_path: Path, reader: InputReader, decoded: list[Path]) -> None:
    path = write_portrait(tmp_path / "me.png", grey=1)
    before = reader.read("me.png", base=str(tmp_path), kind="image")
    write_portrait(path, grey=200)
    os.utime(path, ns=(1, 1))
    after = reader.read("me.png", base=str(tmp_path), kind="image")
    assert before.sha256 != after.sha256
    assert len(decoded) == 2


def test_the_same_file_may_be_asked_for_as_both_kinds(tmp_path: Path, reader: InputReader) -> None:
    write_voice(tmp_path / "voice.wav")
    reader.read("voice.wav", base=str(tmp_path), kind="audio")
    with pytest.raises(UnsupportedMediaError):
        reader.read("voice.wav", base=str(tmp_path), kind="image")


def test_few_inputs_are_remembered(
    tmp_path: Path, reader: InputReader, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_REMEMBERED", 2)
    paths = [write_portrait(tmp_path / f"{name}.png") for name in "abc"]
    a, b, c = paths
    for path in (a, b, a, c, a, c, b):
        reader.read(str(path), base="/", kind="image")
    assert decoded == [a, b, c, b]
    assert len(reader._known) == 2


def test_a_file_that_goes_while_it_is_read_is_no_bug(
    tmp_path: Path, reader: InputReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_portrait(tmp_path / "me.png")

    def facts_and_gone(*_: Any, **__: Any) -> ImageFacts:
        path.unlink()
        return ImageFacts(1, 1)

    monkeypatch.setattr(inputs, "facts_of", facts_and_gone)
    with pytest.raises(InputNotFoundError):
        reader.read("me.png", base=str(tmp_path), kind="image")


def test_any_number_of_threads_may_read(tmp_path: Path, reader: InputReader) -> None:
    paths = [write_portrait(tmp_path / f"{number}.png", grey=number) for number in range(5)]
    found: list[str] = []

    def read_all() -> None:
        for path in paths:
            found.append(reader.read(str(path), base="/", kind="image").sha256)  # noqa: PERF401  (as threads do)

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(4 * [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(
    ("base", "written"),
    [
        ("s3://bucket/jobs", "me.png"),
        ("s3://bucket/jobs", "../jobs/me.png"),
        ("s3://bucket/jobs/deep", "../me.png"),
        ("/a/folder/here", "s3://bucket/jobs/me.png"),
        ("s3://bucket/jobs/tasks", "kept.png"),
        ("s3://bucket/jobs", "kept.png"),
    ],
)
def test_inputs_in_a_bucket_are_found_as_those_on_a_disk_are(
    tmp_path: Path, reader: InputReader, base: str, written: str
) -> None:
    write_portrait(tmp_path / "bucket" / "jobs" / "me.png")
    write_portrait(tmp_path / "bucket" / "jobs" / "inputs" / "images" / "kept.png")
    found = reader.read(written, base=base, kind="image")
    assert found.uri == ("s3://bucket/jobs/inputs/images/kept.png" if "kept" in written else "s3://bucket/jobs/me.png")
    assert found.facts == ImageFacts(512, 512)


@pytest.mark.usefixtures("bucket")
def test_an_input_that_is_in_no_place_of_a_bucket_names_all_of_them(reader: InputReader) -> None:
    with pytest.raises(InputNotFoundError) as told:
        reader.read("me.png", base="s3://bucket/jobs", kind="image")
    for place in ("jobs/me.png", "jobs/inputs/images/me.png", "bucket/inputs/images/me.png"):
        assert place in told.value.message


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("written", ["me.png", "../me.png", "../../other/me.png"])
def test_no_way_leads_out_of_a_bucket(reader: InputReader, written: str) -> None:
    with pytest.raises(InputNotFoundError, match="s3://bucket/"):
        reader.read(written, base="s3://bucket", kind="image")


def test_a_folder_above_is_that_of_the_disk_and_not_of_the_name(tmp_path: Path, reader: InputReader) -> None:
    path = write_portrait(tmp_path / "mount" / "inputs" / "images" / "me.png")
    (tmp_path / "mount" / "tasks").mkdir()
    (tmp_path / "tasks").symlink_to(tmp_path / "mount" / "tasks")
    found = reader.read("me.png", base=str(tmp_path / "tasks"), kind="image")
    assert Path(found.uri).samefile(path)


def test_what_is_too_large_for_an_input_is_not_fetched(tmp_path: Path, bucket: Bucket) -> None:
    path = write_portrait(tmp_path / "bucket" / "me.png")
    limits = ImageLimits(max_bytes=path.stat().st_size - 1)
    bucket.broken = frozenset(["fetch"])
    with pytest.raises(UnsupportedMediaError, match=r"s3://bucket/me\.png\" has .* bytes; allowed are"):
        InputReader(AppConfig(image=limits), tmp_path).read("me.png", base="s3://bucket", kind="image")


@pytest.mark.usefixtures("bucket")
def test_what_is_wrong_with_an_input_is_told_of_its_address(tmp_path: Path, reader: InputReader) -> None:
    path = tmp_path / "bucket" / "me.png"
    path.parent.mkdir()
    path.write_bytes(b"no picture")
    with pytest.raises(UnsupportedMediaError) as told:
        reader.read("me.png", base="s3://bucket", kind="image")
    assert '"s3://bucket/me.png" is not a readable image' in told.value.message
    assert "avatar-input" not in str(told.value)


def test_an_input_that_changes_while_it_is_read_is_known_as_neither(
    tmp_path: Path, reader: InputReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_portrait(tmp_path / "me.png")

    def facts_and_change(*_: Any, **__: Any) -> ImageFacts:
        write_portrait(path, width=64)
        return ImageFacts(1, 1)

    with monkeypatch.context() as patched:
        patched.setattr(inputs, "facts_of", facts_and_change)
        with pytest.raises(StorageError, match="was changed while it was read"):
            reader.read("me.png", base=str(tmp_path), kind="image")
    assert reader.read("me.png", base=str(tmp_path), kind="image").facts == ImageFacts(64, 512)


def test_a_file_that_changed_since_it_was_checked_is_not_taken(tmp_path: Path, reader: InputReader) -> None:
    path = write_voice(tmp_path / "voice.wav")
    checked = reader.read("voice.wav", base=str(tmp_path), kind="audio")
    with checked_copy(checked.uri, sha256=checked.sha256, spool=tmp_path) as same:
        assert same == path
    write_voice(path, pitch=30.0)
    told = pytest.raises(InvalidRequestError, match="has changed since the rows were checked; start the job again")
    with told, checked_copy(checked.uri, sha256=checked.sha256, spool=tmp_path):
        pass


def test_a_bucket_that_does_not_answer_is_not_a_missing_input(
    tmp_path: Path, reader: InputReader, bucket: Bucket
) -> None:
    write_portrait(tmp_path / "bucket" / "me.png")
    for broken in ("stat", "fetch"):
        bucket.broken = frozenset([broken])
        with pytest.raises(StorageError):
            reader.read("me.png", base="s3://bucket", kind="image")
    bucket.broken = frozenset()
    assert reader.read("me.png", base="s3://bucket", kind="image").facts == ImageFacts(512, 512)


def test_a_bucket_that_does_not_come_back_ends_the_check(tmp_path: Path, reader: InputReader, bucket: Bucket) -> None:
    write_portrait(tmp_path / "bucket" / "me.png")

    def fail(times: int, kind: type[Exception]) -> None:
        bucket.broken = frozenset(["fetch"])
        for _ in range(times):
            with pytest.raises(kind):
                reader.read("me.png", base="s3://bucket", kind="image")
        bucket.broken = frozenset()

    fail(19, StorageError)
    write_portrait(tmp_path / "bucket" / "you.png")
    reader.read("you.png", base="s3://bucket", kind="image")
    fail(19, StorageError)
    fail(1, UnavailableError)


def test_a_copy_is_gone_when_it_is_no_longer_needed(tmp_path: Path, bucket: Bucket) -> None:
    path = write_voice(tmp_path / "bucket" / "voice.wav")
    with local_copy("s3://bucket/voice.wav", tmp_path) as copy:
        assert copy.read_bytes() == path.read_bytes()
        assert copy.suffix == ".wav"
    assert not copy.exists()
    bucket.broken = frozenset(["fetch"])
    with pytest.raises(StorageError), local_copy("s3://bucket/voice.wav", tmp_path):
        pass


def test_a_file_of_this_machine_is_not_copied(tmp_path: Path) -> None:
    path = write_voice(tmp_path / "voice.wav")
    with local_copy(str(path), tmp_path) as copy:
        assert copy == path
    assert path.exists()
