"""`live-avatar submit`: `bulk run` as a job of a Ray cluster, followed from here to its exit code."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ray_cluster.errors import ClusterError
from ray_cluster.job import HeadAddressError, HeadUnreachableError, JobLogError, JobSpec, JobState, new_job_id
from serve_app.commands.bulk import add_run_flags, check_run_flags
from serve_app.errors import AvatarError, InvalidRequestError, UnavailableError
from serve_app.planning.network import TINY_CHECKPOINT
from serve_app.rendering.import_path import import_object

RUN = ("live-avatar", "bulk", "run", "--address", "auto")
STOP_GRACE_S = 60
"""For `bulk run` to end its rows and write its reports when the job is stopped; Ray would give it 3 s."""
INPUTS = ("manifest", "audio_dir", "image", "checkpoint")
CANCELLED_CODE = 4
NO_COMMAND_CODE = 127
"""A shell's, for a program that is not there."""

IsStopped = Callable[[], bool]
OnNote = Callable[[str], None]


class SubmittedJob(Protocol):
    """See ray_cluster.job_submit.Job."""

    @property
    def submission_id(self) -> str: ...

    def state(self) -> JobState: ...

    def follow(self, *, is_cancelled: IsStopped, on_note: OnNote) -> Iterator[str]: ...

    def wait(self, *, is_cancelled: IsStopped, on_note: OnNote) -> JobState: ...


class Jobs(Protocol):
    """See ray_cluster.job_submit.JobCluster."""

    def find(self, submission_id: str) -> SubmittedJob | None: ...

    def submit(self, spec: JobSpec) -> SubmittedJob: ...


def add_submit(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `submit` to those of `bulk run`, which go on to the job as they were typed.

    The parser has to resolve conflicts: for `bulk run`, --address is the cluster that the job itself is on.
    """
    add_run_flags(parser)
    add = parser.add_argument_group("the job").add_argument
    own = [
        add("--address", required=True, metavar="URL", help="the cluster's dashboard, like http://HEAD:8265"),
        add("--submission-id", metavar="ID", help="name of the job; one of that name that runs is followed instead"),
        add("--no-follow", action="store_true", help="return when the job is submitted"),
        add("--working-dir", metavar="DIR", help="folder to start in, sent along but for what its .rayignore names"),
        add("--entrypoint-num-cpus", type=float, default=0.0, metavar="N", help="CPUs that the job itself reserves"),
        add("--entrypoint-memory", type=int, default=0, metavar="BYTES", help="memory that the job itself reserves"),
        add("--verify", default="true", metavar="FILE|false", help="whose certificates an https address may have"),
    ]
    takes_value = {flag: action.nargs != 0 for action in own for flag in action.option_strings}
    parser.set_defaults(run=_submit, parser=parser, own_flags=takes_value)


def _submit(options: argparse.Namespace) -> int:
    check_run_flags(options)
    spec = job_spec(options)
    return submit(options, spec, connect=import_object("ray_cluster.job_submit:connect"))


def submit(options: argparse.Namespace, spec: JobSpec, *, connect: Callable[..., Jobs]) -> int:
    """Submits the job, or finds the one that runs, follows it, and returns its exit code.

    When it is stopped itself, the job goes on.
    """
    verify = _verify(options.verify)
    with _told():
        jobs = connect(options.address, verify=verify)
        with options.stopping_later():  # a job that is there is told of, whenever the signal came
            job = start(jobs, spec)
            state = None if options.no_follow else follow(job, is_stopped=options.is_stopped)
    if state is not None:
        return _verdict(job, state)
    print(f"job {job.submission_id} goes on; follow it: {_ray('logs --follow', job, options.address)}", flush=True)
    if not options.is_stopped():
        return 0
    _say(f"to stop it: {_ray('stop', job, options.address)}")
    _say("to continue it once it has ended: submit again, with the same --out and another --submission-id or none")
    return int(options.stop_exit_code())


def job_spec(options: argparse.Namespace) -> JobSpec:
    """Returns the job of these flags; raises InvalidRequestError."""
    _check_paths(options)
    try:
        return JobSpec(
            submission_id=options.submission_id or new_job_id("avatar-bulk"),
            command=(*RUN, *forwarded(options.words, options.own_flags)),
            working_dir=options.working_dir or "",
            num_cpus=options.entrypoint_num_cpus,
            memory_bytes=options.entrypoint_memory,
            stop_grace_s=STOP_GRACE_S,
        )
    except ValueError as error:
        message, _, remedy = str(error).partition("; ")
        raise InvalidRequestError(message, remedy=remedy) from error


def forwarded(words: Sequence[str], own_flags: Mapping[str, bool]) -> list[str]:
    """Returns the words without the flags of our own; these tell whether a value follows."""
    kept, rest = list[str](), iter(words)
    for word in rest:
        if word == "--":  # what follows are no flags
            return [*kept, word, *rest]
        flag, equals, _ = word.partition("=")
        takes_value = own_flags.get(flag.replace("_", "-"))
        if takes_value is None:
            kept.append(word)
        elif takes_value and not equals:
            next(rest)
    return kept


def start(jobs: Jobs, spec: JobSpec) -> SubmittedJob:
    """Submits a job, unless one of its id runs; raises InvalidRequestError where one has ended."""
    job = jobs.find(spec.submission_id)
    if job is None:
        job = jobs.submit(spec)
        _say(f"job {job.submission_id} is submitted")
        return job
    state = job.state()
    if state.is_ended:
        raise InvalidRequestError(
            f"job {spec.submission_id} has ended already ({_how(state)})",
            remedy="give another --submission-id, or none; with the same --out it goes on where that one stopped",
            param="submission_id",
        )
    other = "" if state.entrypoint == spec.entrypoint else f"; its command is another: {state.entrypoint}"
    _say(f"job {spec.submission_id} runs already, nothing is submitted{other}")
    return job


def follow(job: SubmittedJob, *, is_stopped: IsStopped) -> JobState | None:
    """Prints what the job prints, and returns how it ended; None if stopped before."""
    is_line_open = False
    try:
        for text in job.follow(is_cancelled=is_stopped, on_note=_say):
            print(text, end="", flush=True)
            is_line_open = not text.endswith("\n")
    except JobLogError as error:
        _say(str(error))
    if is_line_open:
        print(flush=True)
    try:
        state = job.wait(is_cancelled=is_stopped, on_note=_say)
    except HeadUnreachableError:
        if not is_stopped():
            raise
        return None
    return state if state.is_ended else None


def _verdict(job: SubmittedJob, state: JobState) -> int:
    """Says how the job ended, and returns the exit code of that."""
    if state.was_stopped:
        print(f"job {job.submission_id} was stopped; the same --out continues it, as another job")
        return CANCELLED_CODE
    if state.exit_code is None:
        raise AvatarError(
            f"job {job.submission_id} did not end by itself: {state.message}",
            remedy="look into what it names, and submit again: the same --out continues it",
        )
    if state.exit_code == NO_COMMAND_CODE:
        _say(f"the cluster has no {RUN[0]} on its PATH; install this package in the image of its nodes, head included")
    print(f"job {job.submission_id}: {_how(state)}")
    return state.exit_code if state.exit_code >= 0 else 128 - state.exit_code


def _how(state: JobState) -> str:
    if state.exit_code is None:
        return state.status.lower()
    return "succeeded" if state.exit_code == 0 else f"exit code {state.exit_code}"


def _check_paths(options: argparse.Namespace) -> None:
    """Refuses paths that would mean other files on the cluster than here."""
    if not _is_everywhere(options.out):
        raise InvalidRequestError(
            f"--out {options.out} is relative, and the folder that a job starts in goes with the job",
            remedy="give an absolute path that all nodes share, or s3://...",
            param="out",
        )
    for name in INPUTS:
        path = getattr(options, name)
        if path is not None and path != TINY_CHECKPOINT and not _is_everywhere(path):
            _check_sent_along(name, path, options.working_dir)


def _check_sent_along(name: str, path: str, working_dir: str | None) -> None:
    flag = name if name == "manifest" else f"--{name.replace('_', '-')}"
    if working_dir is None:
        raise InvalidRequestError(
            f"{flag} {path} is relative, and the job starts in another folder than this one",
            remedy="give an absolute path that all nodes share, s3://..., or --working-dir with the folder it is in",
            param=name,
        )
    if "://" not in working_dir and not (Path(working_dir) / path).exists():
        raise InvalidRequestError(
            f"{flag} {path} is not in --working-dir {working_dir}",
            remedy="give its path as seen from that folder",
            param=name,
        )


def _is_everywhere(path: str) -> bool:
    return "://" in path or Path(path).is_absolute()


def _verify(given: str) -> bool | str:
    if given in ("true", "false"):
        return given == "true"
    if not Path(given).exists():
        raise InvalidRequestError(
            f"--verify {given} is no file",
            remedy="give the certificate of whoever vouches for the address, true or false",
            param="verify",
        )
    return given


def _ray(what: str, job: SubmittedJob, address: str) -> str:
    return f"ray job {what} {job.submission_id} --address {shlex.quote(address)}"


def _say(text: str) -> None:
    print(f"live-avatar: {text}", file=sys.stderr, flush=True)


@contextmanager
def _told() -> Iterator[None]:
    """Tells what the cluster has against it as an error that the command line knows."""
    try:
        yield
    except HeadAddressError as error:
        raise InvalidRequestError(error.message, remedy=error.remedy, param="address") from error
    except ClusterError as error:
        raise UnavailableError(error.message, remedy=error.remedy) from error
