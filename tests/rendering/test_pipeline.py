"""The render path: what is told, what is written, and that nothing stays of a video that is not whole."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import av
import pytest
from PIL import Image

from serve_app.errors import AvatarError, InputNotFoundError, OutputError, RenderCancelledError, RenderFailedError
from serve_app.planning.geometry import Size
from serve_app.rendering.frames import FrameSource, IsCancelled
from serve_app.rendering.pipeline import Progress, RenderResult, render
from serve_app.schemas.config import AppConfig
from serve_app.schemas.render import RenderSpec
from serve_app.storage.base import OpenSink
from serve_app.storage.local import local_file
from tests.media.conftest import Probe
from tests.rendering.conftest import a_spec
from tests.rendering.fakes import DrawnSource, ListSink


def run(
    spec: RenderSpec,
    *,
    sink: OpenSink,
    source: FrameSource | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    is_cancelled: IsCancelled = lambda: False,
) -> RenderResult:
    return render(
        spec,
        source=source or DrawnSource(),
        sink=sink,
        config=AppConfig(),
        on_progress=on_progress,
        is_cancelled=is_cancelled,
    )


def count_frames(mp4: bytes) -> int:
    with av.open(io.BytesIO(mp4)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_progress_is_told_before_the_first_block_and_after_every_one(spec: RenderSpec) -> None:
    log: list[Progress] = []
    run(spec, sink=nullcontext(ListSink()), on_progress=log.append)
    assert [progress.frames_done for progress in log] == [0, 12, 24, 30]
    assert {(progress.size, progress.num_frames, progress.warnings) for progress in log} == {(Size(64, 64), 30, ())}


def test_progress_carries_the_warnings(tmp_path: Path, voice: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "small.png")
    log: list[Progress] = []
    run(a_spec(tmp_path / "small.png", voice), sink=nullcontext(ListSink()), on_progress=log.append)
    assert [[warning.code for warning in progress.warnings] for progress in log] == [["small_portrait"]] * 4


def test_the_sink_gets_the_init_segment_and_one_fragment_per_block_then_the_commit(spec: RenderSpec) -> None:
    sink = ListSink()
    result = run(spec, sink=nullcontext(sink))
    assert [fragment[4:8] for fragment in sink.fragments] == [b"ftyp", b"moof", b"moof", b"moof"]
    assert sink.is_committed
    assert result.location == "a list"


def test_every_block_can_be_decoded_as_soon_as_it_is_told(spec: RenderSpec) -> None:
    sink = ListSink()
    decoded: list[tuple[int, int]] = []

    def decode(progress: Progress) -> None:
        if progress.frames_done:
            decoded.append((progress.frames_done, count_frames(sink.video)))

    run(spec, sink=nullcontext(sink), on_progress=decode)
    assert decoded == [(12, 12), (24, 24), (30, 30)]


def test_every_block_can_be_decoded_by_itself(spec: RenderSpec) -> None:
    sink = ListSink()
    run(spec, sink=nullcontext(sink))
    init, *blocks = sink.fragments
    assert [count_frames(init + block) for block in blocks] == [12, 12, 6]


def test_the_fragments_joined_are_the_file(spec: RenderSpec, tmp_path: Path) -> None:
    sink, target = ListSink(), tmp_path / "out" / "video.mp4"
    run(spec, sink=nullcontext(sink))
    result = run(spec, sink=local_file(target))
    assert result.location == str(target)
    assert target.read_bytes() == sink.video


@pytest.mark.parametrize(
    ("changes", "num_frames"), [({}, 30), ({"num_clip": 1, "infer_frames": 24}, 24), ({"num_clip": 9}, 30)]
)
def test_ffprobe_sees_the_promised_video(
    portrait: Path, voice: Path, tmp_path: Path, ffprobe: Probe, changes: dict[str, int], num_frames: int
) -> None:
    target = tmp_path / "video.mp4"
    result = run(a_spec(portrait, voice, size="128*64", fit="exact", **changes), sink=local_file(target))
    probed = ffprobe(target)
    video, audio = probed["video"], probed["audio"]
    assert (video["codec_name"], audio["codec_name"]) == ("h264", "aac")
    assert (video["width"], video["height"], video["r_frame_rate"]) == (128, 64, "25/1")
    assert int(video["nb_read_frames"]) == num_frames
    assert (float(video["start_time"]), float(audio["start_time"])) == (0, 0)
    assert float(video["duration"]) == num_frames / 25
    assert float(audio["duration"]) == pytest.approx(num_frames / 25, abs=0.040)
    assert (result.size, result.num_frames, result.seconds) == (Size(128, 64), num_frames, num_frames / 25)


def test_speed_is_video_time_over_real_time() -> None:
    result = RenderResult("a.mp4", Size(64, 64), num_frames=75, seconds=3.0, render_seconds=1.5)
    assert result.speed == 2.0


def test_one_source_makes_one_video_after_another(spec: RenderSpec) -> None:
    source, first, second = DrawnSource(), ListSink(), ListSink()
    run(spec, source=source, sink=nullcontext(first))
    run(spec, source=source, sink=nullcontext(second))
    assert first.video == second.video
    assert len(source.tasks) == 2


@pytest.mark.parametrize("blocks_before", [0, 1, 2])
def test_a_cancelled_render_says_so_and_leaves_nothing(spec: RenderSpec, tmp_path: Path, blocks_before: int) -> None:
    log: list[Progress] = []
    with pytest.raises(RenderCancelledError):
        run(
            spec,
            sink=local_file(tmp_path / "out" / "video.mp4"),
            on_progress=log.append,
            is_cancelled=lambda: len(log) > blocks_before,
        )
    assert [progress.frames_done for progress in log] == [0, 12, 24][: blocks_before + 1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken_at", [0, 1, 2])
def test_a_source_that_breaks_down_leaves_nothing(spec: RenderSpec, tmp_path: Path, broken_at: int) -> None:
    source = DrawnSource(broken_at=broken_at)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run(spec, source=source, sink=local_file(tmp_path / "out" / "video.mp4"))
    assert not (tmp_path / "out").exists()


def test_a_source_that_ends_early_is_no_video(spec: RenderSpec, tmp_path: Path) -> None:
    with pytest.raises(RenderFailedError, match="24 of 30 frames"):
        run(spec, sink=local_file(tmp_path / "out" / "video.mp4"), source=DrawnSource(ends_at=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_render_leaves_nothing(spec: RenderSpec, tmp_path: Path, stop: type[BaseException]) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.frames_done == 12:
            raise stop

    with pytest.raises(stop):
        run(spec, sink=local_file(tmp_path / "out" / "video.mp4"), on_progress=interrupt)
    assert not (tmp_path / "out").exists()


def test_bad_inputs_reach_neither_sink_nor_source(portrait: Path, tmp_path: Path) -> None:
    source = DrawnSource()
    with pytest.raises(InputNotFoundError):
        run(a_spec(portrait, tmp_path / "no.wav"), source=source, sink=local_file(tmp_path / "out" / "video.mp4"))
    assert source.tasks == []
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_found_before_the_source_is_asked(spec: RenderSpec, portrait: Path) -> None:
    source = DrawnSource()
    with pytest.raises(OutputError):
        run(spec, source=source, sink=local_file(portrait / "video.mp4"))
    assert source.tasks == []


class FullSink(ListSink):
    """Has room for the init segment and one block."""

    def append(self, fragment: bytes) -> None:
        if len(self.fragments) == 2:
            raise OutputError("the disk is full", remedy="make room")
        super().append(fragment)


def test_a_sink_that_is_full_stops_the_render_at_that_block(spec: RenderSpec) -> None:
    sink, log = FullSink(), list[Progress]()
    with pytest.raises(AvatarError, match="the disk is full; make room"):
        run(spec, sink=nullcontext(sink), on_progress=log.append)
    assert [progress.frames_done for progress in log] == [0, 12]
    assert not sink.is_committed
