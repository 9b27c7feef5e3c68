"""A long video needs no more memory than a short one."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np

TIMEOUT_S = 280
CLIP_FRAMES, FIRST_CLIP, LAST_CLIP = 48, 10, 60
FRAME_BYTES = 64 * 64 * 3

SCRIPT = """
import ctypes, re, sys
from contextlib import nullcontext
from pathlib import Path
from serve_app.rendering.frames import InProcessSource
from serve_app.rendering.pipeline import render
from serve_app.schemas.config import AppConfig
from serve_app.schemas.render import RenderSpec

checkpoint, image, audio, clip_frames, *clips = sys.argv[1:]
rss = {}

class Nowhere:
    def append(self, fragment): pass
    def commit(self): return "nowhere"

def note(progress):
    clip, rest = divmod(progress.frames_done, int(clip_frames))
    if rest == 0 and str(clip) in clips:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free but kept by the allocator is no growth
        rss[clip] = 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

render(
    RenderSpec(image=image, audio=audio, prompt="a person speaks", size="64*64", sample_steps=2),
    source=InProcessSource(checkpoint=checkpoint, cache_dir=Path("unused")),
    sink=nullcontext(Nowhere()),
    config=AppConfig(),
    on_progress=note,
    is_cancelled=lambda: False,
)
print(*(rss[int(clip)] for clip in clips))
"""


def test_memory_does_not_grow_with_the_length(small_checkpoint: Path, tmp_path: Path) -> None:
    portrait = Path(__file__).parents[2] / "serve_app" / "samples" / "portrait.png"
    voice = tmp_path / "voice.wav"
    _write_noise(voice, seconds=LAST_CLIP * CLIP_FRAMES / 25)
    found = subprocess.run(
        [
            *(sys.executable, "-c", SCRIPT, str(small_checkpoint), str(portrait), str(voice)),
            *(str(CLIP_FRAMES), str(FIRST_CLIP), str(LAST_CLIP)),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    early, late = (int(rss) for rss in found.stdout.split())
    made = (LAST_CLIP - FIRST_CLIP) * CLIP_FRAMES * FRAME_BYTES
    assert late - early < 0.1 * made, f"RSS grew by {late - early} bytes while {made} bytes of frames were made"


def _write_noise(path: Path, *, seconds: float) -> None:
    noise = np.random.default_rng(0).integers(-8000, 8000, int(seconds * 16_000), dtype=np.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", "not compressed"))
        file.writeframes(noise.tobytes())
