"""Folders as manifests: task files as users have them, and voices with their portraits."""

from __future__ import annotations

import errno
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.bulk.manifests.reading import find_audios, find_manifest, read_manifest
from serve_app.bulk.outcomes import Code
from serve_app.bulk.row import BadRow, Entry
from serve_app.errors import InputNotFoundError, InvalidRequestError
from serve_app.rendering.task_file import MAX_BYTES
from serve_app.schemas.request import complete

TASK = {"image": "me.png", "audio": "voice.wav", "prompt": "A woman talks.", "size": "688*368"}
Rows = list[Entry | BadRow]


def put(path: Path, content: bytes = b"an input") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def tasks(folder: Path) -> Rows:
    return list(read_manifest(find_manifest(str(folder))))


def audios(folder: Path, image: Path, name: str = "{stem}", **fields: object) -> Rows:
    return list(read_manifest(find_audios(str(folder), image=str(image), name=name, fields=fields)))


def test_task_files_are_rows_by_name_and_their_names_are_ids(tmp_path: Path) -> None:
    put(tmp_path / "task_002.json", b"\xef\xbb\xbf" + json.dumps({**TASK, "num_clip": 10}).encode())
    put(tmp_path / "task_001.json", json.dumps(TASK, indent=2).encode())
    put(tmp_path / "task_003.json", json.dumps({**TASK, "preset": "social"}).encode())
    for other in ("task_004.json.bak", "notes.json", "._task_001.json", "done/task_000.json", "me.png"):
        put(tmp_path / other)
    rows = tasks(tmp_path)
    assert [(row.number, row.custom_id, row.base) for row in rows] == [
        (1, "task_001", str(tmp_path)),
        (2, "task_002", str(tmp_path)),
        (3, "task_003", str(tmp_path)),
    ]
    specs = [complete(row.fields, defaults=row.defaults) for row in rows if isinstance(row, Entry)]
    assert [spec.num_clip for spec in specs] == [50, 10, 100]
    assert rows[0].original == {**TASK, "task_file": "task_001.json"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("task_1.json", b"", '"task_1.json" is not JSON in UTF-8'),
        ("task_1.json", b"[]", '"task_1.json" holds [], which is no JSON object; write one JSON object'),
        ("task_1.json", b'{"prompt": "caf\xe9"}', '"task_1.json" is not JSON in UTF-8'),
        ("task_1.json", b'{"seed": 1, "seed": 2}', "has the field 'seed' 2 times"),
        ("task_1.json", b" " * (MAX_BYTES + 1), "has 1000001 bytes; a task file has 1000000 at most"),
        ("task_1.json", b'{"promt": "A."}', "'promt' is not a field of a row (did you mean prompt?)"),
        ("task_1.json", b'{"custom_id": "other"}', "custom_id 'other' is not the name of its task file"),
        ("task_1 (copy).json", b"{}", "custom_id 'task_1 (copy)' is not 1 to 64"),
    ],
    ids=["empty", "list", "encoding", "duplicate", "large", "unknown", "other id", "name"],
)
def test_a_bad_task_file_is_told_and_the_others_are_rows(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    put(tmp_path / name, content)
    put(tmp_path / "task_2.json", json.dumps(TASK).encode())
    first, second = tasks(tmp_path)
    assert isinstance(first, BadRow)
    assert (first.number, first.error.code, first.original["task_file"]) == (1, Code.ROW_INVALID, name)
    assert said in first.error.message
    assert second.custom_id == "task_2"


def test_a_task_file_that_goes_while_the_others_are_read_is_missing(tmp_path: Path) -> None:
    for number in (1, 2):
        put(tmp_path / f"task_{number}.json", json.dumps(TASK).encode())
    rows = read_manifest(find_manifest(str(tmp_path)))
    assert next(rows).custom_id == "task_1"
    (tmp_path / "task_2.json").unlink()
    left = list(rows)
    assert [row.error.code for row in left if isinstance(row, BadRow)] in ([Code.INPUT_MISSING], [])
    assert not [row for row in left if isinstance(row, Entry)]


def test_what_is_reported_of_task_files_can_be_submitted_again(tmp_path: Path) -> None:
    put(tmp_path / "tasks" / "task_1.json", json.dumps({**TASK, "seed": -1}).encode())
    (entry,) = tasks(tmp_path / "tasks")
    assert isinstance(entry, Entry)
    line = {**entry.original, "base": entry.base, "seed": 1, "line": 1, "error": {"code": "ROW_INVALID"}}
    put(tmp_path / "out" / "errors.jsonl", json.dumps(line).encode())
    (again,) = tasks(tmp_path / "out" / "errors.jsonl")
    assert isinstance(again, Entry)
    assert (again.custom_id, again.base, again.defaults) == ("task_1", entry.base, entry.defaults)
    assert again.fields == {**entry.fields, "seed": 1}


def test_a_folder_without_task_files_is_no_manifest(tmp_path: Path) -> None:
    put(tmp_path / "notes.json")
    with pytest.raises(InvalidRequestError, match=r"has no task_\*\.json; put a task file for each video there"):
        tasks(tmp_path)


def test_a_folder_in_it_that_may_not_be_read_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.scandir

    def scandir(path: Path) -> Iterator[os.DirEntry[str]]:  # the rights of folders do not hold for root
        if path.name == "lost+found":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for name in ("anna.wav", "task_1.json", "lost+found/b.wav", "faces/anna.png", "faces/lost+found/b.png"):
        put(tmp_path / name, json.dumps(TASK).encode())
    assert [row.custom_id for row in audios(tmp_path, tmp_path / "faces", prompt="A.")] == ["anna"]
    assert [row.custom_id for row in tasks(tmp_path)] == ["task_1"]


def test_each_sound_of_a_folder_is_a_video_with_one_portrait(tmp_path: Path) -> None:
    for name in ("b.MP3", "a.wav", "notes.txt", ".hidden.wav", "._a.wav", "more/c.wav"):
        put(tmp_path / "voices" / name)
    image = put(tmp_path / "portrait")
    rows = audios(tmp_path / "voices", image, "{stem}_avatar", prompt="A woman talks.", preset="social")
    assert [(row.number, row.custom_id) for row in rows] == [(1, "a_avatar"), (2, "b_avatar")]
    assert isinstance(rows[0], Entry)
    assert rows[0].fields == {
        "image": str(image),
        "audio": str(tmp_path / "voices" / "a.wav"),
        "prompt": "A woman talks.",
        "preset": "social",
    }
    assert rows[0].original == {"custom_id": "a_avatar", **rows[0].fields}


def test_sounds_and_portraits_are_paired_by_name(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "zoë") for form in ("NFC", "NFD"))
    for name in ("anna.wav", "bob.wav", f"{apart}.wav"):
        put(tmp_path / "voices" / name)
    for name in ("anna.JPG", "bob.txt", f"{composed}.png", "other.png"):
        put(tmp_path / "faces" / name)
    anna, bob, zoe = audios(tmp_path / "voices", tmp_path / "faces", "{number:03}-{image_stem}", prompt="A.")
    assert (anna.custom_id, zoe.custom_id) == ("001-anna", "003-zoe")
    assert anna.original["image"] == str(tmp_path / "faces" / "anna.JPG")
    assert zoe.original["image"] == str(tmp_path / "faces" / f"{composed}.png")
    assert isinstance(bob, BadRow)
    assert (bob.error.code, bob.error.stage, bob.custom_id) == (Code.INPUT_MISSING, "inputs", "002-bob")
    assert '"bob.wav" has no image; looked for bob.png, bob.jpg, ' in bob.error.message
    assert f'in "{tmp_path / "faces"}"' in bob.error.message
    assert bob.original["image"] == str(tmp_path / "faces" / "bob.png")


def test_a_sound_with_two_portraits_is_refused_with_both(tmp_path: Path) -> None:
    for name in ("anna.wav", "anna.png", "anna.jpg"):
        put(tmp_path / name)
    (row,) = audios(tmp_path, tmp_path, prompt="A.")
    assert isinstance(row, BadRow)
    assert '"anna.wav" has more than one image: anna.jpg, anna.png; leave one of them' in row.error.message


def test_a_folder_without_sounds_is_no_manifest(tmp_path: Path) -> None:
    image = put(tmp_path / "me.png")
    with pytest.raises(InvalidRequestError, match=r"has no sound; put files there that end in \.wav, \.mp3"):
        audios(tmp_path, image)


def test_flags_that_name_nothing_are_refused_before_anything_runs(tmp_path: Path) -> None:
    image, voice = put(tmp_path / "me.png"), put(tmp_path / "voice.wav")
    with pytest.raises(InputNotFoundError, match="audio_dir 'gone' is neither a file nor a folder"):
        find_audios("gone", image=str(image), fields={})
    with pytest.raises(InvalidRequestError, match="is no folder; name the folder that the sounds are in"):
        find_audios(str(voice), image=str(image), fields={})
    with pytest.raises(InputNotFoundError, match=r"image 'gone\.png' is neither a file nor a folder"):
        find_audios(str(tmp_path), image="gone.png", fields={})
    with pytest.raises(InvalidRequestError, match=r"unknown placeholder '\{custom_id\}'"):
        find_audios(str(tmp_path), image=str(image), name="{custom_id}", fields={})
