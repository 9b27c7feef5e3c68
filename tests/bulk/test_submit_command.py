"""`live-avatar submit`: what becomes of the words, and of the job's end; the cluster is played."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ray_cluster.job import AccessDeniedError, HeadAddressError, HeadUnreachableError, JobLogError, JobSpec, JobState
from serve_app.commands.submit import add_submit, forwarded, job_spec, submit
from serve_app.errors import AvatarError, InvalidRequestError, UnavailableError

ADDRESS = "--address=http://head:8265"
RUNNING = JobState("RUNNING", "", exit_code=None, message="", node_id="a")
SUCCEEDED = replace(RUNNING, status="SUCCEEDED", exit_code=0)


@dataclass
class PlayedJobs:
    """A cluster with one job at most, which prints `log` and ends as `end`."""

    log: list[str] = field(default_factory=lambda: ["row 1 done\n"])
    end: JobState = SUCCEEDED
    known: JobState | None = None
    submitted: list[JobSpec] = field(default_factory=list)
    submission_id = "played"

    def find(self, submission_id: str) -> PlayedJobs | None:
        self.submission_id = submission_id
        return self if self.known else None

    def submit(self, spec: JobSpec) -> PlayedJobs:
        self.submitted.append(spec)
        return self

    def state(self) -> JobState:
        assert self.known is not None
        return self.known

    def follow(self, *, is_cancelled: Callable[[], bool], on_note: Callable[[str], None]) -> Iterator[str]:
        del on_note
        for text in self.log:
            if is_cancelled():
                return
            yield text

    def wait(self, *, is_cancelled: Callable[[], bool], on_note: Callable[[str], None]) -> JobState:
        on_note("waited")
        return RUNNING if is_cancelled() else self.end


def parsed(*words: str, is_stopped: Callable[[], bool] = lambda: False) -> argparse.Namespace:
    """As the command line hands it over."""
    parser = argparse.ArgumentParser(allow_abbrev=False, conflict_handler="resolve")
    add_submit(parser)
    options = parser.parse_args(words)
    options.words, options.is_stopped = words, is_stopped
    options.stopping_later, options.stop_exit_code = nullcontext, lambda: 130
    return options


def run(jobs: PlayedJobs, *words: str, is_stopped: Callable[[], bool] = lambda: False) -> int:
    options = parsed("/m.jsonl", "--out=/o", ADDRESS, *words, is_stopped=is_stopped)
    return submit(options, job_spec(options), connect=lambda *_, **__: jobs)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["m.jsonl", "--out", "o", "--address", "http://h:1"], ["m.jsonl", "--out", "o"]),
        (["--address=http://h:1", "--submission-id", "x", "--no-follow", "m.jsonl"], ["m.jsonl"]),
        (["--working_dir", "d", "--submission_id=x", "--num_clip", "3"], ["--num_clip", "3"]),
        (["--prompt", 'a "b" $(c)\n--address x', "--seed=1"], ["--prompt", 'a "b" $(c)\n--address x', "--seed=1"]),
        (["--verify", "false", "--entrypoint-memory", "7", "--", "--address"], ["--", "--address"]),
        ([], []),
    ],
)
def test_words_that_are_not_of_the_job_go_on_as_typed(typed: list[str], kept: list[str]) -> None:
    own_flags = parsed("/m", "--out=/o", ADDRESS).own_flags
    assert forwarded(typed, own_flags) == kept


def test_the_job_runs_bulk_on_the_cluster_that_it_is_on() -> None:
    options = parsed("/m.jsonl", "--out", "s3://videos/out", ADDRESS, "--entrypoint-num-cpus", "2", "--seed", "7")
    spec = job_spec(options)
    run_bulk = ("live-avatar", "bulk", "run", "--address", "auto")
    assert spec.command == (*run_bulk, "/m.jsonl", "--out", "s3://videos/out", "--seed", "7")
    assert spec.num_cpus == 2
    assert spec.submission_id.startswith("avatar-bulk-20")
    assert spec.stop_grace_s > 3


def test_the_log_and_the_end_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(PlayedJobs(log=["row 1", " done\nrow 2"]), "--submission-id=a") == 0
    assert capsys.readouterr().out == "row 1 done\nrow 2\njob a: succeeded\n"


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ({"status": "FAILED", "exit_code": 3}, 3, "exit code 3"),
        ({"status": "FAILED", "exit_code": 5}, 5, "exit code 5"),
        ({"status": "FAILED", "exit_code": -9}, 137, "exit code -9"),
        ({"status": "STOPPED"}, 4, "was stopped; the same --out continues it"),
    ],
)
def test_the_exit_code_is_the_jobs(capsys: pytest.CaptureFixture[str], end: Any, code: int, said: str) -> None:
    assert run(PlayedJobs(end=replace(RUNNING, **end))) == code
    assert said in capsys.readouterr().out.splitlines()[-1]


def test_a_cluster_without_the_command_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(PlayedJobs(end=replace(RUNNING, status="FAILED", exit_code=127))) == 127
    assert "has no live-avatar on its PATH" in capsys.readouterr().err


def test_an_end_without_an_exit_code_tells_why() -> None:
    jobs = PlayedJobs(end=replace(RUNNING, status="FAILED", message="Job supervisor actor died"))
    with pytest.raises(AvatarError, match="did not end by itself: Job supervisor actor died") as caught:
        run(jobs)
    assert caught.value.exit_code == 1


def test_a_job_of_that_id_that_runs_is_followed_instead(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = PlayedJobs(known=replace(RUNNING, entrypoint="another"))
    assert run(jobs, "--submission-id=mine") == 0
    assert jobs.submitted == []
    shown = capsys.readouterr()
    assert "row 1 done\n" in shown.out
    assert "job mine runs already, nothing is submitted; its command is another: another" in shown.err


def test_a_job_of_that_id_that_has_ended_is_refused() -> None:
    jobs = PlayedJobs(known=replace(RUNNING, status="FAILED", exit_code=3))
    with pytest.raises(InvalidRequestError, match=r"ended already \(exit code 3\); give another --submission-id"):
        run(jobs, "--submission-id=mine")
    assert jobs.submitted == []


def test_not_following_tells_how_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(PlayedJobs(), "--no-follow", "--submission-id=a") == 0
    assert capsys.readouterr().out == ("job a goes on; follow it: ray job logs --follow a --address http://head:8265\n")


def test_who_is_stopped_leaves_the_job_alone_and_tells_the_way_on(capsys: pytest.CaptureFixture[str]) -> None:
    jobs, looks = PlayedJobs(log=["one\n", "two\n", "three\n"]), iter([False, True])
    assert run(jobs, "--submission-id=a", is_stopped=lambda: next(looks, True)) == 130
    shown = capsys.readouterr()
    assert shown.out == "one\njob a goes on; follow it: ray job logs --follow a --address http://head:8265\n"
    assert "to stop it: ray job stop a --address http://head:8265" in shown.err
    assert "the same --out" in shown.err


def test_who_is_stopped_while_the_head_is_away_is_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise HeadUnreachableError("no answer", remedy="wait")

    monkeypatch.setattr(PlayedJobs, "wait", away)
    assert run(PlayedJobs(), is_stopped=lambda: True) == 130
    with pytest.raises(UnavailableError, match="no answer; wait"):
        run(PlayedJobs())


def test_a_log_that_cannot_be_read_costs_no_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreadable(*_: object, **__: object) -> Iterator[str]:
        yield "row 1 done\n"
        raise JobLogError("the log cannot be read", remedy="the job goes on")

    monkeypatch.setattr(PlayedJobs, "follow", unreadable)
    assert run(PlayedJobs(end=replace(RUNNING, status="FAILED", exit_code=3))) == 3
    assert "the log cannot be read; the job goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (HeadAddressError("no dashboard", remedy="give one"), InvalidRequestError, 2),
        (HeadUnreachableError("no answer", remedy="wait"), UnavailableError, 1),
        (AccessDeniedError("not let in", remedy="set RAY_AUTH_TOKEN"), UnavailableError, 1),
    ],
)
def test_what_the_cluster_has_against_it_is_an_error_of_the_command_line(
    error: Exception, kind: type[AvatarError], code: int
) -> None:
    def connect(*_: object, **__: object) -> PlayedJobs:
        raise error

    options = parsed("/m.jsonl", "--out=/o", ADDRESS)
    with pytest.raises(kind) as caught:
        submit(options, job_spec(options), connect=connect)
    assert (str(caught.value), caught.value.exit_code) == (str(error), code)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/m.jsonl", "--out=videos"], "--out videos is relative.*absolute"),
        (["m.jsonl", "--out=/o"], "manifest m.jsonl is relative.*--working-dir"),
        (["m.jsonl", "--out=/o", "--working-dir=."], "manifest m.jsonl is not in --working-dir ."),
        (["--audio-dir=sounds", "--image=/i", "--prompt=a", "--out=/o"], "--audio-dir sounds is relative"),
        (["/m.jsonl", "--checkpoint=weights", "--out=/o"], "--checkpoint weights is relative"),
        (["/m.jsonl", "--out=/o", "--submission-id=a/b"], "submission id 'a/b'"),
        (["/m.jsonl", "--out=/o", "--prompt=\udcff"], "no UTF-8"),
        (["/m.jsonl", "--out=/o", "--verify=missing.pem"], "--verify missing.pem is no file"),
    ],
)
def test_what_would_go_wrong_on_the_cluster_is_refused_here(words: list[str], said: str) -> None:
    options = parsed(*words, ADDRESS)
    jobs = PlayedJobs()
    with pytest.raises(InvalidRequestError, match=said):
        submit(options, job_spec(options), connect=lambda *_, **__: jobs)
    assert jobs.submitted == []


def test_a_manifest_in_the_folder_that_is_sent_along_is_taken(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("{}")
    spec = job_spec(parsed("m.jsonl", "--out=/o", f"--working-dir={tmp_path}", "--checkpoint=tiny", ADDRESS))
    assert spec.working_dir == str(tmp_path)
    assert job_spec(parsed("m.jsonl", "--out=/o", "--working-dir=s3://b/rows.zip", ADDRESS)).working_dir
