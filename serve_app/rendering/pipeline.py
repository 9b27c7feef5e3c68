"""The one render path: spec in, video out. The command line, the service and bulk all come through here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.errors import RenderFailedError
from serve_app.media.audio import open_sound_track
from serve_app.media.probe import QualityWarning
from serve_app.media.video_writer import VideoWriter
from serve_app.planning.geometry import Size
from serve_app.rendering.frames import FrameSource, IsCancelled, in_file_time
from serve_app.rendering.inputs import RenderInputs, read_inputs
from serve_app.schemas.config import AppConfig
from serve_app.schemas.render import RenderSpec
from serve_app.storage.base import OpenSink, VideoSink

PIPELINE_VERSION = 1
"""Raised whenever the same request gives another video: what was made before then counts as something else."""


@dataclass(frozen=True)
class Progress:
    """How far a render is, told when its inputs are read and at every block border."""

    size: Size
    frames_done: int
    num_frames: int
    num_blocks: int
    warnings: tuple[QualityWarning, ...]


@dataclass(frozen=True)
class RenderResult:
    """A finished video; `render_seconds` is the time it took, inputs and loading included.

    `peak_bytes` is the most memory that any rank took (`task.FrameBlock`), None where the source does not tell.
    """

    location: str
    size: Size
    num_frames: int
    seconds: float
    render_seconds: float
    peak_bytes: int | None = None

    @property
    def speed(self) -> float:
        """Seconds of video made per second."""
        return self.seconds / self.render_seconds


def render(
    spec: RenderSpec,
    *,
    source: FrameSource,
    sink: OpenSink,
    config: AppConfig,
    on_progress: Callable[[Progress], None],
    is_cancelled: IsCancelled,
) -> RenderResult:
    """Renders one video, writing each block as soon as it is made, and commits it when it is whole.

    Raises an AvatarError, RenderCancelledError among them; then nothing is left behind.
    """
    started = time.perf_counter()
    inputs = read_inputs(spec, config=config)
    with sink as video:
        peak_bytes = _render_blocks(inputs, source, video, config, on_progress, is_cancelled)
        location = video.commit()
    timeline = inputs.task.timeline
    return RenderResult(
        location=location,
        size=inputs.task.size,
        num_frames=timeline.num_frames,
        seconds=timeline.seconds,
        render_seconds=time.perf_counter() - started,
        peak_bytes=peak_bytes,
    )


def _render_blocks(
    inputs: RenderInputs,
    source: FrameSource,
    video: VideoSink,
    config: AppConfig,
    on_progress: Callable[[Progress], None],
    is_cancelled: IsCancelled,
) -> int | None:
    """Writes every block; returns the most memory that a rank took, as the last of them tells."""
    task, peak_bytes = inputs.task, None
    num_frames, num_blocks, frames_done = task.timeline.num_frames, task.timeline.num_blocks, 0
    on_progress(Progress(task.size, frames_done, num_frames, num_blocks, inputs.warnings))
    with (
        open_sound_track(inputs.sound, limits=config.audio) as sound,
        VideoWriter(task.size, sound=sound, num_frames=num_frames, encoding=config.encoding) as writer,
    ):
        video.append(writer.init_segment())
        for block in source.frames(task, is_cancelled=is_cancelled):
            frames, peak_bytes = in_file_time(block, task.timeline), block.peak_bytes
            video.append(writer.write_block(frames))
            frames_done += len(frames)
            on_progress(Progress(task.size, frames_done, num_frames, num_blocks, inputs.warnings))
    if frames_done != num_frames:
        raise RenderFailedError(
            f"the render ended after {frames_done} of {num_frames} frames", remedy="start it again; nothing was written"
        )
    return peak_bytes
