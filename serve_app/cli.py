"""The `live-avatar` command."""

from __future__ import annotations

import argparse
import io
import json
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Never

from tqdm import tqdm

from serve_app.doctor.examination import Question, as_json, as_table, examine, is_healthy
from serve_app.errors import AvatarError, InvalidRequestError, did_you_mean
from serve_app.rendering.frames import InProcessSource
from serve_app.rendering.import_path import import_object
from serve_app.rendering.pipeline import Progress, RenderResult, render
from serve_app.rendering.task_file import read_task_file
from serve_app.schemas.config import AppConfig
from serve_app.schemas.presets import PRESETS
from serve_app.schemas.render import (
    DEFAULT_INFER_FRAMES,
    DEFAULT_SAMPLE_STEPS,
    DEFAULT_SEED,
    DEFAULT_SIZE,
)
from serve_app.schemas.request import REQUEST_FIELDS, complete
from serve_app.storage.local import local_file

TINY_CHECKPOINT = "tiny"
TINY_SIZE = "128*128"
# Frames per second also when they are few: by default a slow bar turns to seconds per frame.
BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
STOP_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 terminated."""
    stop = _StopSignals()
    try:
        stop.listen()
        _print_any_name()
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        options.is_stopped = stop.is_received
        return int(options.run(options))
    except (AvatarError, _Stopped) as error:
        # Once stopped, whatever ends the work does so because of that.
        print(f"live-avatar: {stop.message if stop.is_received() else error}", file=sys.stderr)
        return stop.exit_code if isinstance(error, _Stopped) or stop.is_received() else error.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; flags are spelled with dashes (`with_dashes` maps the other spelling)."""
    parser = argparse.ArgumentParser(prog="live-avatar", description="A portrait, a voice and a sentence: a video.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_render(commands.add_parser("render", help="render one video on this machine", allow_abbrev=False))
    _add_convert(commands.add_parser("convert", help="merge and cast a checkpoint folder", allow_abbrev=False))
    checkpoint = commands.add_parser("checkpoint", help="look after checkpoint folders").add_subparsers(required=True)
    _add_verify(checkpoint.add_parser("verify", help="read every tensor and name what is wrong", allow_abbrev=False))
    _add_doctor(commands.add_parser("doctor", help="look whether this machine is fit to render", allow_abbrev=False))
    return parser


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with `--num_clip` spelled `--num-clip`; values are left alone."""
    return [_dashed(argument) if argument.startswith("--") else argument for argument in arguments]


def _dashed(flag: str) -> str:
    name, equals, value = flag.partition("=")
    if " " in name:  # argparse takes it for the value of the flag before it, a prompt for example
        return flag
    return name.replace("_", "-") + equals + value


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments; what is unknown ends the process with the usage of its command and a likely flag."""
    options, unknown = build_parser().parse_known_args(with_dashes(arguments))
    if unknown:
        parser: argparse.ArgumentParser = options.parser
        flags = re.findall(r"--([a-z-]+)", parser.format_usage())
        hint = did_you_mean(unknown[0].partition("=")[0].removeprefix("--"), flags, prefix="--")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


def _add_render(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `render`: None stands for a flag that is not given, which a task file or a preset may set."""
    add = parser.add_argument
    add("--image", help="portrait: PNG, JPEG, WebP, ...")
    add("--audio", help="voice: WAV, MP3, M4A, FLAC, OGG, ...")
    add("--prompt", help="what the video shows: person, clothes and pose, scene, light, style")
    add("--task", type=Path, help="JSON file with these settings; flags win over it")
    add("--preset", metavar="NAME", help=f"{', '.join(PRESETS)}; flags and task file win over it")
    add("--size", help=f"WIDTH*HEIGHT (default {DEFAULT_SIZE}, for the tiny model {TINY_SIZE})")
    add("--fit", choices=("area", "exact"), help="--size as an area cap (default), or exactly")
    add("--num-clip", type=int, help="end after so many clips (default: the audio decides)")
    add("--infer-frames", type=int, help=f"frames per clip and KV window (default {DEFAULT_INFER_FRAMES})")
    add("--sample-steps", type=int, help=f"denoising steps per block (default {DEFAULT_SAMPLE_STEPS})")
    add("--sample-guide-scale", type=float, help="0 only: guidance has no effect in this model")
    add("--seed", type=int, help=f"same seed, same video (default {DEFAULT_SEED})")
    add(
        "--enable-online-decode",
        nargs="?",
        const="true",
        metavar="true|false",
        help="replace the portrait by the first generated frame after the first clip (default true)",
    )
    add("--checkpoint", default=TINY_CHECKPOINT, help="checkpoint folder (default: the built-in tiny model)")
    add("--out", type=Path, default=Path("output.mp4"), help="where the MP4 goes (default output.mp4)")
    parser.set_defaults(run=_render, parser=parser)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder to read")
    parser.add_argument("--out", type=Path, required=True, help="new folder to write")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the large networks (default bfloat16)"
    )
    parser.set_defaults(run=_convert, parser=parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="folder to verify")
    parser.set_defaults(run=_verify, parser=parser)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="also look at this checkpoint folder")
    parser.add_argument("--port", type=int, nargs="+", default=[], metavar="N", help="ports that must be free")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(run=_doctor, parser=parser)


def _render(options: argparse.Namespace) -> int:
    config = AppConfig()
    defaults = {"size": TINY_SIZE} if options.checkpoint == TINY_CHECKPOINT else {}
    spec = complete(_given(options), defaults=defaults)
    _spare_inputs(options.out, [spec.image, spec.audio, *([] if options.task is None else [options.task])])
    with _ProgressBar() as bar:
        result = render(
            spec,
            source=InProcessSource(checkpoint=options.checkpoint, cache_dir=config.cache_dir),
            sink=local_file(options.out),
            config=config,
            on_progress=bar.show,
            is_cancelled=options.is_stopped,
        )
    print(_summary(result))
    return 0


def _given(options: argparse.Namespace) -> dict[str, object]:
    """Returns what flags and task file say, by field; raises InvalidRequestError when an input is in neither."""
    flags = {name: value for name in REQUEST_FIELDS if (value := getattr(options, name)) is not None}
    given = flags if options.task is None else read_task_file(options.task, overrides=flags)
    missing = [name for name in ("image", "audio", "prompt") if name not in given]
    if missing:
        listed = ", ".join(f"--{name}" for name in missing)
        raise InvalidRequestError(f"{listed} missing", remedy="give the flag, or --task with a file that has the field")
    return given


def _spare_inputs(out: Path, inputs: Sequence[str | Path]) -> None:
    """Raises InvalidRequestError when the video would replace one of its own inputs."""
    for path in map(Path, inputs):
        with suppress(OSError, ValueError):  # what is no file is told elsewhere
            if out.samefile(path):
                raise InvalidRequestError(
                    f'"{out}" is an input of this video', remedy="name another file for --out", param="out"
                )


def _convert(options: argparse.Namespace) -> int:
    convert = import_object("serve_app.model.convert:convert")
    convert(
        options.checkpoint,
        options.out,
        dtype=options.dtype,
        on_network=lambda role: print(f"writing {role} ...", file=sys.stderr),
    )
    print(f"{options.out}: converted to {options.dtype}, LoRA merged")
    return 0


def _verify(options: argparse.Namespace) -> int:
    """Prints a line per network; exit code 1 when one has a problem."""
    is_sound = True
    for report in import_object("serve_app.model.verify:verify")(options.checkpoint):
        is_sound &= not report.problem
        found = f"{report.num_tensors} tensors, {report.num_parameters} parameters"
        print(f"{report.role:<16}{report.problem or f'ok, {found}'}")
    return 0 if is_sound else 1


def _doctor(options: argparse.Namespace) -> int:
    """Prints what every check of this machine found; exit code 1 when one found a problem."""
    cache_dir = AppConfig().cache_dir
    findings = examine(
        Question(output_dir=Path(), cache_dir=cache_dir, ports=options.port, checkpoint=options.checkpoint)
    )
    print(json.dumps(as_json(findings), indent=2) if options.json else as_table(findings))
    return 0 if is_healthy(findings) else 1


class _ProgressBar:
    """Shows frames per second and the time left on standard error; warnings once, above the bar."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: Progress) -> None:
        if self._bar is None:
            for warning in progress.warnings:
                print(f"warning: {warning}", file=sys.stderr)
            self._bar = tqdm(
                total=progress.num_frames, unit="frame", desc=f"{progress.size}", file=sys.stderr, bar_format=BAR_FORMAT
            )
        self._bar.update(progress.frames_done - self._bar.n)


def _summary(result: RenderResult) -> str:
    return (
        f"{result.location}: {result.size}, {result.num_frames} frames, {result.seconds:.2f} s of video "
        f"in {result.render_seconds:.1f} s ({result.speed:.2f}x real time)"
    )


class _Stopped(BaseException):
    """Ends the work wherever a signal finds it.

    A class of its own, because Python ends a process by the signal instead of its exit code when a
    KeyboardInterrupt has passed through an `exec` on its way, of which imports have many.
    """


class _StopSignals:
    """Ctrl-C and SIGTERM. A library that swallows the exception only delays the end to the next block border."""

    def __init__(self) -> None:
        self._received: int | None = None

    def listen(self) -> None:
        for kind in STOP_SIGNALS:
            if signal.getsignal(kind) is not signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
                signal.signal(kind, self._stop)
        sys.unraisablehook = _say_unless_stopped

    def is_received(self) -> bool:
        return self._received is not None

    @property
    def message(self) -> str:
        assert self._received is not None
        return f"{STOP_SIGNALS[signal.Signals(self._received)]}; nothing was written"

    @property
    def exit_code(self) -> int:
        assert self._received is not None
        return 128 + self._received

    def _stop(self, kind: int, _frame: FrameType | None) -> None:
        self._received = kind
        raise _Stopped


def _say_unless_stopped(unraisable: sys.UnraisableHookArgs) -> None:
    if not isinstance(unraisable.exc_value, _Stopped):
        sys.__unraisablehook__(unraisable)


def _print_any_name() -> None:
    """Lets file names that are no text be printed, in escapes, as standard error does by itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
