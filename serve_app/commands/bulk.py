"""`live-avatar bulk`: whole manifests: validate, run, status, cancel, report."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Never

from tqdm import tqdm

from serve_app.commands.layout_flags import LAYOUT_FLAGS, add_layout, given_layout
from serve_app.errors import InvalidRequestError, OutputError
from serve_app.rendering.import_path import import_object
from serve_app.schemas.render import DEFAULT_INFER_FRAMES, DEFAULT_SAMPLE_STEPS, DEFAULT_SEED, DEFAULT_SIZE

Document = Mapping[str, Any]

DEFAULTS = ("preset", "size", "fit", "num_clip", "infer_frames", "sample_steps", "seed", "enable_online_decode")
"""Settings for rows that say nothing of them."""
PAUSED, FATAL = 5, 1
OF_OWN_POOL = ("checkpoint", "layout", *LAYOUT_FLAGS, "gpus", "groups", "cpus_per_rank", "leader_cpus")


def add_bulk(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-commands of `bulk`."""
    commands = parser.add_subparsers(dest="bulk", required=True)
    run = commands.add_parser("run", help="render a manifest; the same command continues", allow_abbrev=False)
    add_run_flags(run)
    run.set_defaults(run=_run, parser=run)
    validate = commands.add_parser("validate", help="check a manifest and plan it", allow_abbrev=False)
    add_run_flags(validate, needs_out=False)
    validate.set_defaults(run=_validate, parser=validate)
    for name, what, act in _ON_OUTPUT:
        command = commands.add_parser(name, help=what, allow_abbrev=False)
        command.add_argument("out", help="the output folder of the job")
        command.set_defaults(run=act, parser=command)


def add_run_flags(parser: argparse.ArgumentParser, *, needs_out: bool = True) -> None:
    """Adds the flags of `bulk run`, which `submit` takes too."""
    add = parser.add_argument
    add("manifest", nargs="?", help="JSONL, CSV, Parquet or a folder of task_*.json; a path or s3://...")
    add("--out", required=needs_out, help="output folder, a path or s3://...: run again, it continues there")
    add("--audio-dir", help="instead of a manifest: a video for each sound in this folder")
    add("--image", help="with --audio-dir: the portrait, or a folder of portraits with the names of the sounds")
    add("--prompt", help="with --audio-dir: what the videos show")
    add("--name", metavar="TEMPLATE", help="with --audio-dir: ids, e.g. '{stem}_avatar'; else names of --archive")
    add("--watch", action="store_true", help="take what is put into the folder, until stopped")
    add("--on-invalid", choices=("skip", "abort"), default="skip", help="rows that cannot be rendered (default skip)")
    add("--dry-run", action="store_true", help="check and plan, render nothing")
    add("--archive", action="store_true", help="also keep the videos as OUT/videos/NAME.mp4")
    _add_defaults(parser)
    add("--pool", choices=("own", "serve"), default="own", help="groups of its own (default), or a running service's")
    add("--url", help="with --pool serve: where the service is (default http://127.0.0.1:8000)")
    add("--checkpoint", help="checkpoint folder (default: the built-in tiny model)")
    add_layout(parser)
    add("--gpus", metavar="KIND", help="card of each rank: 24, 80, H100, ...; none: the CPU (default: as found)")
    add("--groups", type=int, metavar="N", help="replica groups (default: as many as there are GPUs for)")
    add("--cpus-per-rank", type=float, metavar="N", help="CPUs that a rank takes from Ray (default 1)")
    add("--leader-cpus", type=float, metavar="N", help="CPUs that a leader, which encodes, takes (default 1)")
    add("--address", help="Ray cluster: auto, or HOST:PORT (default: a private Ray on this machine)")
    add("--row-timeout-s", type=float, metavar="S", help="no attempt of a row takes longer (default: 3 x predicted)")
    add("--max-attempts", type=int, metavar="N", help="attempts of a row (default 3)")


def _add_defaults(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--preset", metavar="NAME", help="for rows without one; a row's own settings win over it")
    add("--size", help=f"for rows without one (default {DEFAULT_SIZE}, for the tiny model 128*128)")
    add("--fit", choices=("area", "exact"))
    add("--num-clip", type=int, help="for rows without one (default: the audio decides; in task files 50)")
    add("--infer-frames", type=int, help=f"(default {DEFAULT_INFER_FRAMES})")
    add("--sample-steps", type=int, help=f"(default {DEFAULT_SAMPLE_STEPS})")
    add("--seed", type=int, help=f"(default {DEFAULT_SEED})")
    add("--enable-online-decode", nargs="?", const="true", metavar="true|false")


def _run(options: argparse.Namespace) -> int:
    check_run_flags(options)
    if options.dry_run:
        return _validate(options)
    run_bulk: Any = import_object("serve_app.bulk.command:run_bulk")  # Ray takes a second to import
    with options.stopping_later(), _Screen() as screen, _fatal():
        code, summary = run_bulk(settings_of(options), listener=screen, is_stopped=options.is_stopped)
    print(_summary(summary))
    if code == PAUSED and summary["last_error"]:
        print(f"live-avatar: paused, for too many attempts failed: {summary['last_error']['message']}", file=sys.stderr)
    if code:
        print(
            f"live-avatar: not all is done: {options.out}/errors.jsonl tells which rows failed and why, and a "
            f"corrected copy of it is a manifest; the same command continues: {shlex.join(sys.argv)}",
            file=sys.stderr,
        )
    return int(code)


@contextmanager
def _fatal() -> Iterator[None]:
    """Lets a disk that is full end a job as what it is: no fault of the manifest, of which exit code 2 speaks."""
    try:
        yield
    except OutputError as error:
        error.exit_code = FATAL
        raise


def _validate(options: argparse.Namespace) -> int:
    check_run_flags(options)
    validate: Any = import_object("serve_app.bulk.command:validate_bulk")
    plan = validate(settings_of(options), on_bad=lambda row: print(json.dumps(row), file=sys.stderr))
    print(json.dumps(plan, indent=2))
    return 3 if plan["bad"] else 0


def _status(options: argparse.Namespace) -> int:
    status: Any = import_object("serve_app.bulk.status:status_of")
    told = status(options.out)
    print(json.dumps(told, indent=1))
    if told["state"] == "gone":
        print("live-avatar: nobody works on this job any more; its command continues it", file=sys.stderr)
    return 0


def _report(options: argparse.Namespace) -> int:
    report: Any = import_object("serve_app.bulk.status:report_of")
    print(json.dumps(report(options.out), indent=1))
    return 0


def _cancel(options: argparse.Namespace) -> int:
    open_output: Any = import_object("serve_app.bulk.output:open_output")
    ask_to_cancel: Any = import_object("serve_app.bulk.lock:ask_to_cancel")
    if not ask_to_cancel(open_output(options.out)):
        raise InvalidRequestError(
            f'no job works in "{options.out}"', remedy="name the --out of a job that runs", param="out"
        )
    print("asked to stop; the job ends at its next block borders, and the same command continues it")
    return 0


_ON_OUTPUT = (
    ("status", "how far a job is", _status),
    ("cancel", "stop a job at its next block borders", _cancel),
    ("report", "what became of a job that has ended", _report),
)


def check_run_flags(options: argparse.Namespace) -> None:
    """Raises InvalidRequestError for flags that contradict each other, or would change nothing."""
    if (options.manifest is None) == (options.audio_dir is None):
        raise _wrong("give either a manifest or --audio-dir", "name one of them", "manifest")
    if options.audio_dir is not None and None in (options.image, options.prompt):
        raise _wrong("--audio-dir needs --image and --prompt", "give both", "audio_dir")
    if options.audio_dir is None:
        _refuse(options, ("image", "prompt"), "only with --audio-dir; a manifest's rows say it")
        if not options.archive:
            _refuse(options, ("name",), "only with --audio-dir or --archive")
    if options.pool == "serve":
        _refuse(options, OF_OWN_POOL, "only with --pool own; a service has groups of its own")
    else:
        _refuse(options, ("url",), "only with --pool serve")
    if options.dry_run and options.watch:
        raise _wrong("--dry-run with --watch", "leave one out", "watch")
    if options.on_invalid == "abort" and options.watch:
        raise _wrong(
            "--on-invalid abort with --watch: rows are rendered before others, which may be bad ones, come",
            "leave one out",
            "on_invalid",
        )


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what the flags say, as `bulk.command` takes it."""
    layout = given_layout(options)
    return {
        **{name: getattr(options, name) for name in _TAKEN},
        "layout": None if layout is None else str(layout),
        "defaults": {name: value for name in DEFAULTS if (value := getattr(options, name)) is not None},
        "aborts_on_invalid": options.on_invalid == "abort",
    }


_TAKEN = (
    *("manifest", "out", "audio_dir", "image", "prompt", "name", "watch", "archive", "pool", "url", "checkpoint"),
    *("gpus", "groups", "cpus_per_rank", "leader_cpus", "address", "row_timeout_s", "max_attempts"),
)


def _refuse(options: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
    if given:
        raise _wrong(f"{', '.join(given)}: {why}", "leave it out", names[0])


def _wrong(message: str, remedy: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(message, remedy=remedy, param=param)


class _Screen:
    """Shows how the job goes: bars on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None
        self._told = ""

    def __enter__(self) -> _Screen:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def planned(self, plan: Document) -> None:
        """Tells what will be done."""
        bad = sum(plan["bad"].values())
        print(
            f"{plan['rows']} rows, {bad} of them not to be rendered; {plan['video_s']:.0f} s of video on "
            f"{plan['lanes']} groups",
            file=sys.stderr,
        )
        for line in plan["examples"]:
            print(f"  {line}", file=sys.stderr)
        if sys.stderr.isatty():
            self._bar = tqdm(total=plan["good"], unit="video", file=sys.stderr)

    def progress(self, state: Document) -> None:
        """Tells how far it is."""
        rows = state["rows"]
        done, failed = rows["done"] + rows["skipped"], rows["failed"]
        if self._bar is None:
            line = f"{done} of {rows['total']} done, {failed} failed"
            if line != self._told:
                rest = "" if state["rest_s"] is None else f", {state['rest_s']:.0f} s left"
                print(f"{line}{rest}", file=sys.stderr, flush=True)
            self._told = line
            return
        self._bar.update(done - self._bar.n)
        self._bar.set_postfix_str(_lanes(state))


def _lanes(state: Document) -> str:
    working = [
        f"{lane['custom_id']} {lane['blocks_done']}/{lane['num_blocks']}"
        for lane in state["lanes"]
        if lane["num_blocks"]
    ]
    return ", ".join(working)


def _summary(summary: Document) -> str:
    rows, gpu_s = summary["rows"], summary["gpu_s"]
    return (
        f"{rows['done']} made, {rows['skipped']} made before, {rows['failed']} failed, {rows['waiting']} left; "
        f"{summary['video_s']:.1f} s of video in {summary['elapsed_s']:.0f} s; "
        f"GPU seconds: {gpu_s['useful']:.0f} useful, {gpu_s['retried']:.0f} retried, {gpu_s['idle']:.0f} idle"
    )
