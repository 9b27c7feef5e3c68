"""Host budgets of one video: memory of the machine that runs its ranks, and disk for inputs and output."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.planning.calibration import Calibration
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.network import ELEMENT_BYTES, PUBLISHED, DiTDims, DType, ModelDims
from serve_app.planning.workload import WHOLE_SPEECH_SECONDS, Workload

DISK_WATERMARK = 0.1
"""So much of a disk stays free: nothing is admitted that would go below."""
AUDIO_BITS_PER_SECOND = 128_000
_SPEECH_STATES = 25
_HIDDEN_FPS = 50
_SAMPLE_BYTES = 16_000 * 4
_FRAMES_IN_FLIGHT = 4 * 12
"""Decoded frames that wait between GPU and encoder: a few blocks."""


@dataclass(frozen=True)
class HostBudget:
    """Bytes that all ranks of one video take of their machine (of one machine, when they share it), and of its disk.

    `pinned_bytes` cannot be swapped out and are part of `memory_bytes`.
    """

    pinned_bytes: int
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class DiskFull:
    """What a disk lacks."""

    needed_bytes: int
    available_bytes: int


def host_budget(
    work: Workload,
    layout: ParallelLayout,
    *,
    calibration: Calibration,
    input_bytes: int = 0,
    dtype: DType = "bfloat16",
    dims: ModelDims = PUBLISHED,
) -> HostBudget:
    """Returns what a video takes besides GPU memory.

    With offload every stage rank pins its units. Rank 0 keeps the encoders of text and speech, the speech, and the
    hidden states of what is encoded at once; frames pass by block after block, so that nothing grows with the length
    of the video but its speech and its file.
    """
    element = ELEMENT_BYTES[dtype]
    pinned = layout.num_stage_ranks * _pinned_bytes(dims.dit, element) if layout.offload == "layers" else 0
    speech = round(work.speech_seconds * _SAMPLE_BYTES)
    states = (
        round(min(work.speech_seconds, WHOLE_SPEECH_SECONDS) * _HIDDEN_FPS) * _SPEECH_STATES * dims.speech.hidden * 4
    )
    frames = _FRAMES_IN_FLIGHT * work.size.area * 3
    return HostBudget(
        pinned_bytes=pinned,
        memory_bytes=pinned + dims.text.parameters * element + dims.speech.parameters * 4 + speech + states + frames,
        disk_bytes=input_bytes + output_bytes(work, calibration=calibration),
    )


def _pinned_bytes(dims: DiTDims, element: int) -> int:
    """Returns what one rank pins: one buffer of all units, of which torch makes a power of two."""
    return 1 << (sum(dims.units) * element - 1).bit_length()


def output_bytes(work: Workload, *, calibration: Calibration) -> int:
    """Returns the size of the file: bit rate times seconds, picture and sound, twice while fragments are joined."""
    picture = work.num_frames * work.size.area * calibration.video_bits_per_pixel / 8
    sound = work.timeline.seconds * AUDIO_BITS_PER_SECOND / 8
    return 2 * round(picture + sound)


def check_disk(needed_bytes: int, *, free_bytes: int, total_bytes: int) -> DiskFull | None:
    """Returns what is lacking when writing so much would leave less than the watermark free."""
    available = max(0, free_bytes - round(DISK_WATERMARK * total_bytes))
    return DiskFull(needed_bytes, available) if needed_bytes > available else None
