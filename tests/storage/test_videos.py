"""Videos of the service on a disk: what an attempt leaves, whatever becomes of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from serve_app.errors import RankError
from serve_app.storage.base import VideoSink
from serve_app.storage.videos import VideoFiles

JOB = "video_1"


@pytest.fixture
def videos(tmp_path: Path) -> VideoFiles:
    return VideoFiles(tmp_path)


def files_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def make(videos: VideoFiles, *, attempt: int = 1) -> None:
    with videos.sink(JOB, attempt=attempt) as sink:
        for fragment in (b"start", b"one"):
            sink.append(fragment)
        sink.commit()


def test_fragments_are_read_while_the_video_is_made_and_the_video_when_it_is_whole(videos: VideoFiles) -> None:
    with videos.sink(JOB, attempt=1) as sink:
        sink.append(b"start")
        sink.append(b"one")
        assert [videos.fragment(JOB, attempt=1, number=number) for number in range(3)] == [b"start", b"one", None]
        assert (videos.open(JOB, attempt=1), videos.is_committed(JOB, attempt=1)) == (None, False)
        assert sink.commit() == str(videos.location(JOB, 1))
    assert videos.fragment(JOB, attempt=1, number=1) == b"one"
    with videos.open(JOB, attempt=1) as whole:  # type: ignore[union-attr]
        assert whole.read() == b"startone"


def fail_after(sink: VideoSink) -> None:
    sink.append(b"start")
    raise RankError("rank 1 ended", remedy="start it again")


def test_an_attempt_that_fails_leaves_no_file(videos: VideoFiles, tmp_path: Path) -> None:
    with pytest.raises(RankError), videos.sink(JOB, attempt=1) as sink:
        fail_after(sink)
    assert files_below(tmp_path) == set()


def test_withdrawing_an_attempt_leaves_the_others(videos: VideoFiles, tmp_path: Path) -> None:
    make(videos, attempt=1)
    make(videos, attempt=2)
    videos.withdraw(JOB, attempt=1)
    assert files_below(tmp_path) == {f"live/{JOB}/2/0.mp4", f"live/{JOB}/2/1.m4s", f"videos/{JOB}/2.mp4"}


def test_what_a_leader_left_that_was_killed_goes_when_the_job_ends(videos: VideoFiles, tmp_path: Path) -> None:
    make(videos, attempt=2)
    (tmp_path / "live" / JOB / "1").mkdir()
    (tmp_path / "live" / JOB / "1" / "0.mp4").write_bytes(b"start")
    (tmp_path / "videos" / JOB / ".1.mp4.part").write_bytes(b"half of a video")
    videos.end(JOB)
    videos.end(JOB)
    assert files_below(tmp_path) == {f"videos/{JOB}/2.mp4"}


@pytest.mark.parametrize("remove", ["end", "delete"])
def test_removing_does_not_fail_while_a_leader_that_was_given_up_still_writes(
    videos: VideoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remove: str
) -> None:
    def written_to(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    make(videos)
    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", written_to)
        getattr(videos, remove)(JOB)
    assert videos.job_ids() == {JOB}  # so that it is swept
    videos.delete(JOB)
    assert set(tmp_path.rglob("*")) == {tmp_path / "live", tmp_path / "videos"}


def test_only_what_can_be_a_job_is_taken_for_one(videos: VideoFiles, tmp_path: Path) -> None:
    assert videos.job_ids() == set()
    make(videos)
    for name in ("lost+found", ".snapshot"):
        (tmp_path / "videos" / name).mkdir()
    assert videos.job_ids() == {JOB}


@pytest.mark.parametrize("job_id", ["../x", "", "a/b", "a" * 65])
def test_an_id_is_never_a_path(videos: VideoFiles, job_id: str) -> None:
    with pytest.raises(ValueError, match="is no job id"):
        videos.location(job_id, 1)
