"""The output folder: what makes a row done, whatever dies in between and whoever else writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.bulk.output import RowOutput, committed, open_output, read_result
from serve_app.errors import InvalidRequestError, OutputError, StorageError
from serve_app.storage.local_folder import LocalFolder
from serve_app.storage.s3 import S3Folder
from tests.bulk.folders import Bucket, FrailFolder, names_in
from tests.storage.s3_servers import moto_server, use

VIDEO = b"a whole video" * 1000


@pytest.fixture
def out(tmp_path: Path) -> FrailFolder:
    return FrailFolder(tmp_path / "out")


def row(folder: LocalFolder, tmp_path: Path, custom_id: str = "row") -> RowOutput:
    spool = tmp_path / "spool"
    spool.mkdir(exist_ok=True)
    return RowOutput(folder, custom_id, spool)


def make(output: RowOutput, video: bytes = VIDEO) -> tuple[str, int]:
    with output.sink() as sink:
        sink.append(video)
        sink.commit()
    return output.publish()


def result(key: str = "k1", **about: Any) -> dict[str, Any]:
    return {"custom_id": "row", "row_key": key, "sha256": hashlib.sha256(VIDEO).hexdigest(), **about}


def test_a_row_is_done_once_its_result_is_there(out: LocalFolder, tmp_path: Path) -> None:
    output = row(out, tmp_path)
    assert make(output) == (hashlib.sha256(VIDEO).hexdigest(), len(VIDEO))
    assert (output.result(), list(committed(out))) == (None, [])
    assert output.commit(result(seconds=1.2)) == result(seconds=1.2)
    assert (output.result(), list(committed(out))) == (result(seconds=1.2), ["row"])
    assert names_in(tmp_path / "out") == ["row/result.json", "row/video.mp4"]
    assert Path(output.uri).read_bytes() == VIDEO


def test_a_video_that_is_not_whole_leaves_nothing(out: LocalFolder, tmp_path: Path) -> None:
    output = row(out, tmp_path)
    with output.sink() as sink:
        sink.append(b"half")
    assert not (tmp_path / "out").exists()
    assert output.result() is None


def test_a_crash_between_video_and_result_leaves_a_row_that_is_not_done(out: LocalFolder, tmp_path: Path) -> None:
    make(row(out, tmp_path), b"of the run that died")
    again = row(out, tmp_path)
    assert (again.result(), list(committed(out))) == (None, [])
    make(again)
    again.commit(result())
    assert Path(again.uri).read_bytes() == VIDEO


def test_a_changed_row_takes_its_old_result_back_before_its_video_is_replaced(out: LocalFolder, tmp_path: Path) -> None:
    output = row(out, tmp_path)
    make(output, b"old")
    output.commit(result("old key"))
    output.prepare()
    assert (output.result(), Path(output.uri).read_bytes()) == (None, b"old")
    make(output)
    assert output.commit(result("new key"))["row_key"] == "new key"


def test_there_may_be_nothing_to_take_back(out: LocalFolder, tmp_path: Path) -> None:
    row(out, tmp_path).prepare()
    assert names_in(tmp_path) == []


def test_of_two_drivers_with_the_same_row_the_first_result_counts(out: LocalFolder, tmp_path: Path) -> None:
    mine, other = row(out, tmp_path), row(out, tmp_path)
    make(mine)
    make(other)
    assert mine.commit(result(group="mine"))["group"] == "mine"
    assert other.commit(result(group="other"))["group"] == "mine"
    assert other.result() == result(group="mine")


def test_a_result_is_always_that_of_the_bytes_that_are_there(out: LocalFolder, tmp_path: Path) -> None:
    first, late = row(out, tmp_path), row(out, tmp_path)
    first.commit(result(sha256=make(first, b"on one card")[0]))
    late.commit(result(sha256=make(late, b"on four cards")[0], group="late"))
    told = late.result()
    assert told is not None
    assert told["group"] == "late"
    assert told["sha256"] == hashlib.sha256(Path(late.uri).read_bytes()).hexdigest()


@pytest.mark.parametrize("content", [json.dumps(result("another key")).encode(), b"spoiled"])
def test_a_result_for_another_row_that_came_meanwhile_is_not_overwritten(
    out: LocalFolder, tmp_path: Path, content: bytes
) -> None:
    output = row(out, tmp_path)
    make(output)
    out.write("row/result.json", content)
    with pytest.raises(OutputError, match="written meanwhile, for another row"):
        output.commit(result())
    stored = out.read("row/result.json")
    assert stored is not None
    assert stored.content == content


@pytest.mark.parametrize("content", [b"", b"{", b'"text"', b"[]", b"{}", b'{"key": "k1"}', b"\xff\xfe"])
def test_a_result_that_a_crash_spoiled_is_none_and_the_row_is_made_again(
    out: LocalFolder, tmp_path: Path, content: bytes
) -> None:
    out.write("row/result.json", content)
    output = row(out, tmp_path)
    assert read_result(out, "row") is None
    output.prepare()
    make(output)
    assert output.commit(result()) == result()


def test_committed_rows_are_told_and_nothing_else_is(out: LocalFolder, tmp_path: Path) -> None:
    for custom_id in ("b", "a"):
        output = row(out, tmp_path, custom_id)
        make(output)
        output.archive(f"archived-{custom_id}")
        output.commit(result())
    out.write("c/video.mp4", b"not done")
    out.write("result.json", b"{}")
    out.write("d/deep/result.json", b"{}")
    out.write("run.json", b"{}")
    assert list(committed(out)) == ["a", "b"]


def test_an_output_folder_need_not_be_there(tmp_path: Path) -> None:
    assert list(committed(open_output(str(tmp_path / "nowhere")))) == []


def test_an_output_folder_is_the_same_from_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_output("out").uri() == str(tmp_path / "out")


@pytest.mark.parametrize("uri", ["s3://", "ftp://host/out", "a\0b"])
def test_what_is_no_folder_is_refused(uri: str) -> None:
    with pytest.raises(InvalidRequestError):
        open_output(uri)


def test_the_archive_has_the_same_video_under_another_name(out: LocalFolder, tmp_path: Path) -> None:
    output = row(out, tmp_path)
    make(output)
    assert not output.is_archived("Spring 1")
    output.archive("Spring 1")
    output.archive("Spring 1")
    assert output.is_archived("Spring 1")
    archived = tmp_path / "out" / "videos" / "Spring 1.mp4"
    assert archived.samefile(output.uri)
    make(output, b"a newer version")
    assert not output.is_archived("Spring 1")
    output.archive("Spring 1")
    assert output.is_archived("Spring 1")
    assert archived.read_bytes() == b"a newer version"


def test_another_rows_video_under_the_name_is_not_the_rows_own(out: LocalFolder, tmp_path: Path) -> None:
    one, other = row(out, tmp_path, "one"), row(out, tmp_path, "other")
    for output in (one, other):
        make(output)
    one.archive("01")
    assert (one.is_archived("01"), other.is_archived("01")) == (True, False)
    other.archive("01")
    assert (one.is_archived("01"), other.is_archived("01")) == (False, True)


def test_a_bucket_knows_equal_videos_unless_they_came_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with moto_server(tmp_path) as server:
        use(server, monkeypatch)
        server.client().create_bucket(Bucket="videos")
        bucket = S3Folder("videos", part_bytes=5 << 20)
        (tmp_path / "spool").mkdir()
        for custom_id, video in (("one", b"one"), ("two", b"two"), ("large", bytes(6 << 20))):
            output = RowOutput(bucket, custom_id, tmp_path / "spool")
            make(output, video)
            assert not output.is_archived("01")
            output.archive("01")
            assert output.is_archived("01") is (custom_id != "large")
            stored = bucket.read("videos/01.mp4")
            assert stored is not None
            assert stored.content == video


def test_a_row_without_a_name_is_not_archived(out: LocalFolder, tmp_path: Path) -> None:
    output = row(out, tmp_path)
    make(output)
    output.archive(None)
    assert names_in(tmp_path / "out") == ["row/video.mp4"]


def test_a_video_that_somebody_removed_is_told_with_how_it_comes_back(out: LocalFolder, tmp_path: Path) -> None:
    output = row(out, tmp_path)
    make(output)
    output.commit(result())
    Path(output.uri).unlink()
    with pytest.raises(OutputError, match=r"video\.mp4. is gone.*remove .*result\.json"):
        output.archive("name")


def test_the_log_of_an_attempt_is_kept_whatever_is_in_it(out: LocalFolder, tmp_path: Path) -> None:
    uri = row(out, tmp_path).write_log(3, "half a character: \ud800\n")
    assert uri == str(tmp_path / "out" / "row" / "attempt_3.log")
    assert Path(uri).read_text() == "half a character: \\ud800\n"


def test_on_its_way_to_a_bucket_a_video_is_kept_here(tmp_path: Path) -> None:
    output = row(Bucket(tmp_path / "bucket"), tmp_path)
    assert make(output) == (hashlib.sha256(VIDEO).hexdigest(), len(VIDEO))
    output.commit(result())
    assert output.uri == "s3://bucket/row/video.mp4"
    assert names_in(tmp_path / "bucket") == ["row/result.json", "row/video.mp4"]
    assert (tmp_path / "bucket" / "row" / "video.mp4").read_bytes() == VIDEO
    output.discard()
    assert names_in(tmp_path / "spool") == []


def test_what_a_bucket_does_not_take_can_be_brought_again_or_discarded(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path / "bucket")
    output = row(bucket, tmp_path)
    bucket.broken = frozenset(["put"])
    with pytest.raises(StorageError, match="put"):
        make(output)
    bucket.broken = frozenset()
    assert output.publish()[1] == len(VIDEO)
    output.discard()
    output.discard()
    assert names_in(tmp_path / "spool") == []


def test_a_video_on_a_disk_is_in_its_place_and_not_discarded(out: LocalFolder, tmp_path: Path) -> None:
    output = row(out, tmp_path)
    make(output)
    output.discard()
    assert Path(output.uri).read_bytes() == VIDEO


@pytest.mark.parametrize("broken", ["read", "write_if", "delete", "copy"])
def test_a_folder_that_is_away_is_told_as_that(out: FrailFolder, tmp_path: Path, broken: str) -> None:
    output = row(out, tmp_path)
    make(output)
    out.broken = frozenset([broken])
    acts = {"read": output.result, "write_if": lambda: output.commit(result()), "delete": output.prepare}
    with pytest.raises(StorageError, match=broken):
        acts.get(broken, lambda: output.archive("name"))()
    out.broken = frozenset()
    assert output.commit(result()) == result()
