"""Times the fragment writer alone: milliseconds to encode a block of 12 frames with its sound.

python load_tests/bench_encoding.py [WIDTH*HEIGHT ...]
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serve_app.media.video_writer import VideoWriter
from serve_app.planning.geometry import FPS, FRAMES_PER_BLOCK, Size, exact_size, parse_size
from serve_app.schemas.config import VideoEncoding

DEFAULT_SIZES = ("128*128", "704*384")
NUM_BLOCKS = 20


@dataclass
class Noise:
    """A sound that the writer can read: quiet noise, 48 kHz, mono."""

    sample_rate: int = 48_000
    channels: int = 1
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def read(self, num_samples: int) -> NDArray[np.float32]:
        return self.random.uniform(-0.1, 0.1, (num_samples, 1)).astype(np.float32)


def main(sizes: list[str]) -> int:
    """Prints one line per size."""
    for text in sizes or DEFAULT_SIZES:
        size = exact_size(parse_size(text))
        seconds, num_bytes = encode(size)
        real_time = FRAMES_PER_BLOCK / FPS / seconds
        sys.stdout.write(
            f"encode {size}: {seconds * 1e3:.1f} ms per block ({real_time:.1f}x real time), "
            f"{num_bytes / NUM_BLOCKS / 1024:.0f} KiB per block\n"
        )
    return 0


def encode(size: Size) -> tuple[float, int]:
    """Returns the median seconds per block, and all bytes, of a video whose picture drifts over a still one."""
    frames = drifting_frames(size)
    seconds, num_bytes = [], 0
    with VideoWriter(size, sound=Noise(), num_frames=NUM_BLOCKS * FRAMES_PER_BLOCK, encoding=VideoEncoding()) as writer:
        for _ in range(NUM_BLOCKS):
            started = time.perf_counter()
            num_bytes += len(writer.write_block(frames))
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), num_bytes


def drifting_frames(size: Size) -> NDArray[np.uint8]:
    """Returns 12 frames of smooth colour with some grain, each shifted by a pixel: about what a face costs."""
    rows, columns = np.mgrid[0 : size.height, 0 : size.width]
    grain = np.random.default_rng(0).integers(-6, 6, (size.height, size.width, 3))
    smooth = np.stack((rows * 255 // size.height, columns * 255 // size.width, (rows + columns) % 256), axis=-1)
    still = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    return np.stack([np.roll(still, shift, axis=1) for shift in range(FRAMES_PER_BLOCK)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
