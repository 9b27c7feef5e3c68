"""The `live-avatar` command."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Never

from tqdm import tqdm

from serve_app.errors import AvatarError
from serve_app.rendering.frames import InProcessSource
from serve_app.rendering.import_path import import_object
from serve_app.rendering.pipeline import Progress, RenderResult, render
from serve_app.schemas.config import AppConfig
from serve_app.schemas.render import (
    DEFAULT_INFER_FRAMES,
    DEFAULT_SAMPLE_STEPS,
    DEFAULT_SEED,
    DEFAULT_SIZE,
    RenderSpec,
)
from serve_app.storage.local import local_file

TINY_CHECKPOINT = "tiny"
TINY_SIZE = "128*128"
STOP_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 terminated."""
    try:
        _stop_on_signals()
        options = build_parser().parse_args(with_dashes(sys.argv[1:] if arguments is None else arguments))
        return int(options.run(options))
    except AvatarError as error:
        print(f"live-avatar: {error}", file=sys.stderr)
        return error.exit_code
    except _Stopped as stopped:
        print(f"live-avatar: {stopped}; nothing was written", file=sys.stderr)
        return stopped.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; flags are spelled with dashes (`with_dashes` maps the other spelling)."""
    parser = argparse.ArgumentParser(prog="live-avatar", description="A portrait, a voice and a sentence: a video.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_render(commands.add_parser("render", help="render one video on this machine", allow_abbrev=False))
    _add_convert(commands.add_parser("convert", help="merge and cast a checkpoint folder", allow_abbrev=False))
    checkpoint = commands.add_parser("checkpoint", help="look after checkpoint folders").add_subparsers(required=True)
    _add_verify(checkpoint.add_parser("verify", help="read every tensor and name what is wrong", allow_abbrev=False))
    return parser


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with `--num_clip` spelled `--num-clip`; values are left alone."""
    return [_dashed(argument) if argument.startswith("--") else argument for argument in arguments]


def _dashed(flag: str) -> str:
    name, equals, value = flag.partition("=")
    if " " in name:  # argparse takes it for the value of the flag before it, a prompt for example
        return flag
    return name.replace("_", "-") + equals + value


def _add_render(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image", required=True, help="portrait: PNG, JPEG, WebP, ...")
    add("--audio", required=True, help="voice: WAV, MP3, M4A, FLAC, OGG, ...")
    add("--prompt", required=True, help="what the video shows: person, clothes and pose, scene, light, style")
    add("--size", help=f"WIDTH*HEIGHT (default {DEFAULT_SIZE}, for the tiny model {TINY_SIZE})")
    add("--fit", choices=("area", "exact"), default="area", help="--size as an area cap (default), or exactly")
    add("--num-clip", type=int, help="end after so many clips (default: the audio decides)")
    add("--infer-frames", type=int, default=DEFAULT_INFER_FRAMES, help="frames per clip and KV window (default 48)")
    add("--sample-steps", type=int, default=DEFAULT_SAMPLE_STEPS, help="denoising steps per block (default 4)")
    add("--seed", type=int, default=DEFAULT_SEED, help="same seed, same video (default 420)")
    add("--checkpoint", default=TINY_CHECKPOINT, help="checkpoint folder (default: the built-in tiny model)")
    add("--out", type=Path, default=Path("output.mp4"), help="where the MP4 goes (default output.mp4)")
    parser.set_defaults(run=_render)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder to read")
    parser.add_argument("--out", type=Path, required=True, help="new folder to write")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the large networks (default bfloat16)"
    )
    parser.set_defaults(run=_convert)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="folder to verify")
    parser.set_defaults(run=_verify)


def _render(options: argparse.Namespace) -> int:
    config = AppConfig()
    spec = _spec(options)
    with _ProgressBar() as bar:
        result = render(
            spec,
            source=InProcessSource(checkpoint=options.checkpoint, cache_dir=config.cache_dir),
            sink=local_file(options.out),
            config=config,
            on_progress=bar.show,
            is_cancelled=lambda: False,
        )
    print(_summary(result))
    return 0


def _spec(options: argparse.Namespace) -> RenderSpec:
    default_size = TINY_SIZE if options.checkpoint == TINY_CHECKPOINT else DEFAULT_SIZE
    return RenderSpec.from_request(
        image=options.image,
        audio=options.audio,
        prompt=options.prompt,
        size=default_size if options.size is None else options.size,
        fit=options.fit,
        num_clip=options.num_clip,
        infer_frames=options.infer_frames,
        sample_steps=options.sample_steps,
        seed=options.seed,
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
            self._bar = tqdm(total=progress.num_frames, unit="frame", desc=f"{progress.size}", file=sys.stderr)
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

    def __init__(self, kind: int) -> None:
        super().__init__(STOP_SIGNALS[signal.Signals(kind)])
        self.exit_code = 128 + kind


def _stop_on_signals() -> None:
    for kind in STOP_SIGNALS:
        if signal.getsignal(kind) is not signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
            signal.signal(kind, _stop)


def _stop(kind: int, _frame: FrameType | None) -> None:
    raise _Stopped(kind)


if __name__ == "__main__":
    sys.exit(main())
