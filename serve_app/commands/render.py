"""`live-avatar render`: one video, in this process or by a gang on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Never

from tqdm import tqdm

from ray_cluster.gpu_monitor import GpuLog, GpuMonitor
from ray_cluster.nvml import NoGpus, open_gpus
from serve_app.commands.layout_flags import add_layout, given_layout
from serve_app.errors import InvalidRequestError, OutputError
from serve_app.planning.network import TINY_CHECKPOINT
from serve_app.rendering.frames import FrameSource, InProcessSource
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

TINY_SIZE = "128*128"
# Frames per second also when they are few: by default a slow bar turns to seconds per frame.
BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


def add_render(parser: argparse.ArgumentParser) -> None:
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
    add_layout(parser)
    add("--checkpoint", default=TINY_CHECKPOINT, help="checkpoint folder (default: the built-in tiny model)")
    add("--out", type=Path, default=Path("output.mp4"), help="where the MP4 goes (default output.mp4)")
    add("--gpu-log", type=Path, metavar="FILE", help="write the GPUs' memory to this CSV, once a second")
    parser.set_defaults(run=_render, parser=parser)


def _render(options: argparse.Namespace) -> int:
    config = AppConfig()
    defaults = {"size": TINY_SIZE} if options.checkpoint == TINY_CHECKPOINT else {}
    spec = complete(_given(options), defaults=defaults)
    _spare_inputs(options.out, [spec.image, spec.audio, *([] if options.task is None else [options.task])])
    with _ProgressBar() as bar, _gpu_log(options.gpu_log), _source(options, config) as source:
        result = render(
            spec,
            source=source,
            sink=local_file(options.out),
            config=config,
            on_progress=bar.show,
            is_cancelled=options.is_stopped,
        )
    print(_summary(result))
    return 0


@contextmanager
def _source(options: argparse.Namespace, config: AppConfig) -> Iterator[FrameSource]:
    """Yields what makes the frames: this process, or with a layout a gang of its own."""
    layout = given_layout(options)
    if layout is None:
        yield InProcessSource(checkpoint=options.checkpoint, cache_dir=config.cache_dir)
        return
    gang = import_object("serve_app.deployments.local_gang:LocalGangSource")  # Ray takes a second to import
    with (
        options.stopping_later(),  # an exception from a signal would break Ray where it is
        gang(layout, checkpoint=options.checkpoint, config=config, on_start=_say) as source,
    ):
        yield source


@contextmanager
def _gpu_log(path: Path | None) -> Iterator[None]:
    """Logs the GPUs' memory while a video is made; says so where there are none."""
    if path is None:
        yield
        return
    sampler = open_gpus()
    if isinstance(sampler, NoGpus):
        _say(f"no {path}: {sampler.reason}")
        yield
        return
    with sampler, _opened_log(path) as log, GpuMonitor(sampler, interval_s=1.0, listeners=[log]):
        yield


def _opened_log(path: Path) -> GpuLog:
    try:
        return GpuLog(path)
    except OSError as error:
        raise OutputError(
            f'"{path}" cannot be written: {error.strerror or error}', remedy="name another file for --gpu-log"
        ) from error


def _say(line: str) -> None:
    print(line, file=sys.stderr)


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
