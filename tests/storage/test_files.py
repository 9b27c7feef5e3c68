"""Uploads on the disk: whole or not there, found by id alone, gone when they are old."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest

from serve_app.errors import OutputError, UnsupportedMediaError, UploadNotFoundError
from serve_app.storage import files
from serve_app.storage.files import INLINE, INLINE_S, AudioFacts, Facts, FileStore, ImageFacts, StoredFile

CONTENT = b"a picture"
FACTS = ImageFacts(width=640, height=480)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> FileStore:
    return FileStore(tmp_path, wall_clock=clock)


def add(store: FileStore, content: bytes = CONTENT, *, purpose: str = "user_data", facts: Facts = FACTS) -> StoredFile:
    return store.add(io.BytesIO(content), inspect=lambda *_: facts, purpose=purpose, filename="me.png")


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_an_upload_is_known_with_its_digest_and_facts(store: FileStore) -> None:
    stored = add(store)
    assert (stored.num_bytes, stored.sha256, stored.kind) == (9, hashlib.sha256(CONTENT).hexdigest(), "image")
    assert store.get(stored.id) == stored
    assert store.path_of(stored.id).read_bytes() == CONTENT
    with store.open(stored.id) as file:
        assert file.read() == CONTENT
    sound = add(store, facts=AudioFacts(32_000, 16_000, peak=0.5, rms=0.1, clipped_share=0.0))
    assert (store.get(sound.id), sound.kind) == (sound, "audio")
    assert isinstance(sound.facts, AudioFacts)
    assert sound.facts.seconds == 2.0


def test_facts_are_read_from_the_bytes_before_anybody_sees_them(store: FileStore) -> None:
    seen: list[bytes] = []

    def inspect(path: Path, sha256: str) -> Facts:
        seen.append(path.read_bytes())
        assert sha256 == hashlib.sha256(CONTENT).hexdigest()
        assert store.page().files == ()
        return FACTS

    store.add(io.BytesIO(CONTENT), inspect=inspect, purpose="user_data")
    assert seen == [CONTENT]


def test_of_what_is_refused_nothing_stays(store: FileStore, tmp_path: Path) -> None:
    def refuse(path: Path, _: str) -> Facts:
        raise UnsupportedMediaError(str(path), remedy="none")

    with pytest.raises(UnsupportedMediaError):
        store.add(io.BytesIO(CONTENT), inspect=refuse, purpose="user_data")
    assert everything(tmp_path) == []


@pytest.mark.parametrize("file_id", ["", "x", "file_", "../jobs.sqlite", "file_" + "g" * 32, "file_" + "0" * 32 + "\n"])
def test_only_ids_of_ours_are_looked_for(store: FileStore, file_id: str) -> None:
    for look in (store.get, store.path_of, store.open, store.delete, store.borrow):
        with pytest.raises(UploadNotFoundError):
            look(file_id)


def test_names_are_for_display_alone(store: FileStore, tmp_path: Path) -> None:
    stored = store.add(
        io.BytesIO(CONTENT), inspect=lambda *_: FACTS, purpose="user_data", filename="../\r\n\x00" + "x" * 999
    )
    assert stored.filename.startswith("../???x")
    assert len(stored.filename) == 255
    assert {path.parent for path in everything(tmp_path)} == {tmp_path / "files"}


def test_pages_go_by_age_and_leave_inline_files_out(store: FileStore) -> None:
    first, second, third = (add(store) for _ in range(3))
    add(store, purpose=INLINE)
    assert store.page().files == (third, second, first)
    assert store.page(order="asc", limit=2).files == (first, second)
    assert store.page(order="asc", limit=2).has_more
    rest = store.page(order="asc", limit=2, after=second.id)
    assert (rest.files, rest.has_more) == ((third,), False)
    assert store.page(after=second.id).files == (first,)
    vision = add(store, purpose="vision")
    assert (store.page(purpose="vision").files, store.page(purpose="user_data").files[0]) == ((vision,), third)


def test_an_upload_that_is_decoded_for_long_is_as_old_as_its_coming(store: FileStore) -> None:
    quick: list[StoredFile] = []

    def inspect(*_: object) -> Facts:
        quick.append(add(store))
        return FACTS

    slow = store.add(io.BytesIO(CONTENT), inspect=inspect, purpose="user_data")
    assert store.page(order="asc").files == (slow, *quick)
    assert store.page(order="asc", after=slow.id).files == tuple(quick)


def test_of_many_uploads_those_of_the_page_are_read_alone(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = [add(store) for _ in range(30)]
    read, seen = files._read, list[Path]()
    monkeypatch.setattr(files, "_read", lambda path: seen.append(path) or read(path))
    page = store.page(limit=5, after=uploads[20].id)
    assert page.files == tuple(uploads[19:14:-1])
    assert len(seen) == 6  # one more, to see whether others follow


def test_uploads_of_the_same_moment_are_each_on_one_page(store: FileStore, clock: Clock) -> None:
    uploads = []
    for _ in range(6):
        clock.now = 2_000.0
        uploads.append(add(store))
    found, after = [], None
    while (page := store.page(limit=2, after=after)).files:
        found += page.files
        after = page.files[-1].id
    assert sorted(one.id for one in found) == sorted(one.id for one in uploads)


def test_a_twin_outlives_its_upload(store: FileStore) -> None:
    original = add(store)
    twin = store.borrow(original.id)
    assert (twin.purpose, twin.sha256, twin.facts) == (INLINE, original.sha256, original.facts)
    store.delete(original.id)
    assert store.path_of(twin.id).read_bytes() == CONTENT
    with pytest.raises(UploadNotFoundError):
        store.borrow(original.id)


def test_where_files_cannot_be_linked_they_are_copied(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert store.path_of(store.borrow(add(store).id).id).read_bytes() == CONTENT


def test_old_files_go_but_those_that_are_needed(store: FileStore, clock: Clock, tmp_path: Path) -> None:
    old, needed, inline = add(store), add(store), add(store, purpose=INLINE)
    clock.now += 100
    young = add(store)
    assert set(store.expire(older_than_s=50, keep={needed.id})) == {old.id, inline.id}
    assert store.page().files == (young, needed)
    assert len(everything(tmp_path)) == 4


def test_inline_files_without_a_video_that_needs_them_go_early(store: FileStore, clock: Clock) -> None:
    upload, orphan, needed = add(store), add(store, purpose=INLINE), add(store, purpose=INLINE)
    clock.now += INLINE_S - 100
    assert store.expire(older_than_s=7 * INLINE_S, keep={needed.id}) == []
    clock.now += 200
    assert store.expire(older_than_s=7 * INLINE_S, keep={needed.id}) == [orphan.id]
    assert store.get(upload.id) == upload
    assert store.get(needed.id) == needed


def test_what_a_crash_left_goes_when_it_is_old(store: FileStore, clock: Clock, tmp_path: Path) -> None:
    kept = add(store)
    folder = tmp_path / "files"
    for name in (".file_0.json.12.part", "file_" + "0" * 32):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (500, 500))
    (folder / ".young.part").write_bytes(b"x")
    store.expire(older_than_s=clock.now - 600, keep=())
    assert everything(tmp_path) == sorted([folder / ".young.part", folder / kept.id, folder / f"{kept.id}.json"])


def test_a_description_that_a_crash_of_the_machine_spoiled_hides_one_file_alone(store: FileStore, clock: Clock) -> None:
    kept, spoiled = add(store), add(store)
    about = store.path_of(spoiled.id).with_suffix(".json")
    about.write_bytes(b"")
    assert store.page().files == (kept,)
    with pytest.raises(UploadNotFoundError):
        store.get(spoiled.id)
    for path in (about, about.with_suffix("")):
        os.utime(path, (500, 500))
    store.expire(older_than_s=clock.now - 600, keep=())
    assert not about.exists()
    assert not about.with_suffix("").exists()


def test_a_twin_of_an_old_upload_does_not_look_like_what_a_crash_left(store: FileStore, tmp_path: Path) -> None:
    old = add(store)
    os.utime(store.path_of(old.id), (500, 500))
    twin = store.borrow(old.id)
    store.path_of(twin.id).with_suffix(".json").unlink()  # as before it is described
    store.expire(older_than_s=100, keep={old.id})
    assert (tmp_path / "inline" / twin.id).read_bytes() == CONTENT


def test_files_survive_a_crash_of_the_machine_once_they_are_synced(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name))
    first, second, gone = add(store), add(store, purpose=INLINE), add(store)
    assert synced == []
    store.delete(gone.id)
    store.sync((first, second, gone))
    names = [name for one in (first, second) for name in (one.id, f"{one.id}.json")]
    assert sorted(synced) == sorted([*names, "files", "inline"])


def test_a_disk_that_fails_when_synced_is_told(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    stored = add(store)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        store.sync((stored,))


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    with pytest.raises(OutputError, match="the upload cannot be kept"):
        add(FileStore(tmp_path))
