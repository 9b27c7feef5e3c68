"""The messages between a render and the ranks that compute it: RenderTask in, FrameBlock out.

Plain frozen data on numpy, so that both the control plane (no torch) and the model plane (no pydantic) use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve_app.planning.geometry import Size, Timeline

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL_SAMPLE_RATE = 16_000
CARD_BYTES = "card_bytes"
"""Among the facts of a rank that has a GPU: the memory of that card, as CUDA reports it."""


@dataclass(frozen=True, eq=False)
class RenderTask:
    """Everything that the model needs to make one video; inputs are decoded and of the final size.

    `image` is uint8 [height, width, 3], already fitted to the video. `speech` is float32 [samples]:
    mono, 16 kHz, full scale 1. `prompt` is cleaned text. `replace_reference` exchanges the portrait for
    the first generated frame after clip 0 (the users' enable_online_decode).
    """

    prompt: str
    image: NDArray[np.uint8]
    speech: NDArray[np.float32]
    timeline: Timeline
    sample_steps: int
    seed: int
    replace_reference: bool

    @property
    def size(self) -> Size:
        height, width, _ = self.image.shape
        return Size(width=width, height=height)


@dataclass(frozen=True, eq=False)
class FrameBlock:
    """The frames of one block: uint8 [frames, height, width, 3].

    Block 0 has 9 frames, every other block 12 (`planning.geometry`); `seconds` is the time that it took. The last block
    tells `peak_bytes`, the most memory that any rank took for the video: of a GPU what was allocated during it, of a
    rank on the CPU what its process ever held.
    """

    index: int
    frames: NDArray[np.uint8]
    seconds: float
    peak_bytes: int | None = None
