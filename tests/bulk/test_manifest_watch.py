"""Watched folders: what is new is taken once, when it is whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from serve_app.bulk.manifests.folders import TaskFolder
from serve_app.bulk.manifests.reading import find_audios, find_manifest, watch_manifest
from serve_app.bulk.manifests.watch import Watch
from serve_app.bulk.outcomes import Code
from serve_app.bulk.row import BadRow
from serve_app.errors import InvalidRequestError, StorageError
from tests.bulk.folders import FrailFolder

TASK = json.dumps({"image": "me.png", "audio": "voice.wav", "prompt": "A woman talks."}).encode()


def put(path: Path, content: bytes = b"an input") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def taken(watch: Watch) -> list[tuple[int, str]]:
    return [(row.number, row.custom_id) for row in watch.poll()]


def test_a_task_file_is_taken_once_two_looks_find_it_the_same(tmp_path: Path) -> None:
    watch = watch_manifest(find_manifest(str(tmp_path)))
    assert taken(watch) == []
    path = put(tmp_path / "task_2.json", TASK[:20])
    assert taken(watch) == []
    put(path, TASK)
    assert taken(watch) == []
    assert taken(watch) == [(1, "task_2")]
    put(tmp_path / "task_1.json", TASK)
    put(path, TASK + b" ")
    assert taken(watch) == []
    assert taken(watch) == [(2, "task_1")]
    assert taken(watch) == []
    assert watch.left() == []


def test_a_file_of_the_same_length_that_is_still_written_is_not_taken(tmp_path: Path) -> None:
    watch = watch_manifest(find_manifest(str(tmp_path)))
    path = put(tmp_path / "task_1.json", b" " * len(TASK))
    assert taken(watch) == []
    put(path, TASK)
    os.utime(path, ns=(1, 1))
    assert taken(watch) == []
    assert taken(watch) == [(1, "task_1")]


def test_an_empty_file_is_not_yet_written(tmp_path: Path) -> None:
    watch = watch_manifest(find_manifest(str(tmp_path)))
    path = put(tmp_path / "task_1.json", b"")
    assert [taken(watch) for _ in range(3)] == [[], [], []]
    put(path, TASK)
    assert [taken(watch) for _ in range(2)] == [[], [(1, "task_1")]]


def test_a_bad_task_file_is_told_once(tmp_path: Path) -> None:
    watch = watch_manifest(find_manifest(str(tmp_path)))
    put(tmp_path / "task_1.json", b"{half")
    assert list(watch.poll()) == []
    (row,) = watch.poll()
    assert isinstance(row, BadRow)
    assert list(watch.poll()) == []


def test_what_an_error_kept_from_being_read_is_found_again(tmp_path: Path) -> None:
    folder = FrailFolder(tmp_path)
    for number in range(1, 5):
        put(tmp_path / f"task_{number}.json", TASK)
    watch = watch_manifest(TaskFolder(folder))
    assert taken(watch) == []
    looking = watch.poll()
    assert [next(looking).custom_id for _ in range(2)] == ["task_1", "task_2"]
    folder.broken = frozenset(["read"])
    with pytest.raises(StorageError):
        next(looking)
    folder.broken = frozenset(["list"])
    with pytest.raises(StorageError):
        taken(watch)
    folder.broken = frozenset()
    assert taken(watch) == [(3, "task_3"), (4, "task_4")]


def test_what_was_seen_before_is_not_told(tmp_path: Path) -> None:
    for number in (1, 2):
        put(tmp_path / f"task_{number}.json", TASK)
    watch = watch_manifest(find_manifest(str(tmp_path)), seen={"task_1.json"})
    assert [taken(watch) for _ in range(2)] == [[], [(1, "task_2")]]


def test_a_sound_waits_for_its_portrait(tmp_path: Path) -> None:
    for folder in ("voices", "faces"):
        (tmp_path / folder).mkdir()
    source = find_audios(str(tmp_path / "voices"), image=str(tmp_path / "faces"), fields={"prompt": "A."})
    watch = watch_manifest(source)
    for name in ("anna.wav", "bob.wav"):
        put(tmp_path / "voices" / name)
    assert [taken(watch) for _ in range(2)] == [[], []]
    face = put(tmp_path / "faces" / "bob.png", b"half a")
    assert taken(watch) == []
    put(face, b"a whole portrait")
    assert taken(watch) == []
    assert taken(watch) == [(1, "bob")]
    assert taken(watch) == []
    (left,) = watch.left()
    assert (left.custom_id, left.error.code) == ("anna", Code.INPUT_MISSING)


def test_with_one_portrait_for_all_a_sound_waits_for_itself_alone(tmp_path: Path) -> None:
    image = put(tmp_path / "me.png")
    watch = watch_manifest(find_audios(str(tmp_path), image=str(image), fields={"prompt": "A."}))
    put(tmp_path / "anna.wav")
    assert [taken(watch) for _ in range(2)] == [[], [(1, "anna")]]
    assert watch.left() == []


def test_a_file_cannot_be_watched(tmp_path: Path) -> None:
    source = find_manifest(str(put(tmp_path / "rows.jsonl", b"{}")))
    with pytest.raises(InvalidRequestError, match=r"is a file, and only a folder can be watched; leave out --watch"):
        watch_manifest(source)
