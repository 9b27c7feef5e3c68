"""The memory formulas beside the real full-size networks on fake tensors: exact terms exact, peaks within 3 %."""

from __future__ import annotations

import pytest
import torch

from serve_app.engine.decoding import FrameDecoder
from serve_app.model import speech_encoder
from serve_app.model.config import ModelSizes, TextEncoderConfig
from serve_app.model.kv_cache import WindowCache
from serve_app.model.speech_encoder import SpeechEncoder
from serve_app.model.text_encoder import TextEncoder
from serve_app.planning.calibration import load_calibration
from serve_app.planning.decoding import decode_bytes, encode_bytes, stream_bytes
from serve_app.planning.geometry import Size, Timeline
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.memory import RankMemory, denoise_bytes, estimate
from serve_app.planning.network import PUBLISHED
from serve_app.planning.workload import Workload
from tests.planning.full_size import FakeVideo, faked, full_dit, full_vae, latents, peak_of, tracked
from tests.planning.live_storage import storage_bytes

TOLERANCE = 0.03
SINGLE = ParallelLayout()
BF16 = 2


def memory_of(work: Workload, layout: ParallelLayout = SINGLE) -> RankMemory:
    return estimate(work, layout, dtype="bfloat16", calibration=load_calibration())[0]


def bytes_of(memory: RankMemory, name: str) -> int:
    return next(part.num_bytes for part in (*memory.parts, *memory.phases) if part.name == name)


@pytest.mark.parametrize(
    ("size", "infer_frames"),
    [
        (Size(384, 256), 48),
        (Size(256, 384), 12),
        (Size(704, 384), 12),
        (Size(704, 384), 48),
        (Size(704, 384), 96),
        (Size(640, 448), 36),
        (Size(512, 512), 24),
        (Size(1280, 704), 48),
        (Size(64, 64), 48),
    ],
    ids=str,
)
def test_the_peak_of_a_call(size: Size, infer_frames: int) -> None:
    work = Workload(size, infer_frames)
    with faked():
        dit = full_dit(2, injected=(0,))
        with tracked(dit) as live:
            video = FakeVideo.begin(dit, work, live)
            seen = max(video.call(block) for block in (0, video.blocks_per_window))
    assert denoise_bytes(work, SINGLE, PUBLISHED, BF16) == pytest.approx(seen, rel=TOLERANCE)


@pytest.mark.parametrize("size", [Size(384, 256), Size(704, 384), Size(448, 640), Size(1280, 704)], ids=str)
def test_the_decoder_of_a_video(size: Size) -> None:
    with faked():
        vae = full_vae()
        with tracked(vae) as live:
            still, block = latents(size, 19), latents(size, 3)
            before = live.live_bytes
            decoder = FrameDecoder(vae, still)
            stream = live.live_bytes - before
            seen = max(
                peak_of(live, lambda index=index: decoder.decode(block, Timeline(240, 48).position(index)))  # type: ignore[misc]
                for index in range(2)
            )
    assert stream_bytes(PUBLISHED.vae, size, BF16) == pytest.approx(stream, rel=1e-5)
    assert decode_bytes(PUBLISHED.vae, size, BF16) == pytest.approx(seen, rel=TOLERANCE)


def test_the_encoding_of_a_portrait() -> None:
    size = Size(384, 256)
    with faked():
        vae = full_vae()
        with tracked(vae) as live:
            frame = torch.zeros(3, size.height, size.width, dtype=torch.float32)
            seen = live.live_bytes + peak_of(live, lambda: vae.encode(frame[:, None].expand(-1, 13, -1, -1)))
    assert encode_bytes(PUBLISHED.vae, size, BF16) == pytest.approx(seen, rel=TOLERANCE)


@pytest.mark.parametrize("seconds", [5, 20, 60])
def test_the_encoding_of_speech(seconds: int) -> None:
    with faked(torch.float32):
        encoder = SpeechEncoder(speech_encoder.speech_config(ModelSizes().speech)).eval().requires_grad_(False)
        weights = storage_bytes(encoder.parameters())
        with tracked(encoder) as live:
            seen = peak_of(live, lambda: encoder(torch.zeros(seconds * 16_000)))
    memory = memory_of(Workload(Size(384, 256), speech_seconds=seconds))
    phase = next(phase for phase in memory.phases if phase.name == "encode speech")
    assert phase.exact_bytes == weights
    assert phase.num_bytes == pytest.approx(seen, rel=TOLERANCE)


def test_the_longest_prompt() -> None:
    with faked():
        encoder = TextEncoder(TextEncoderConfig()).eval().requires_grad_(False)
        weights = storage_bytes(encoder.parameters())
        with tracked(encoder) as live:
            seen = peak_of(live, lambda: encoder(torch.zeros(512, dtype=torch.int64)))
    memory = memory_of(Workload(Size(384, 256)))
    phase = next(phase for phase in memory.phases if phase.name == "text encoder")
    assert phase.exact_bytes == weights
    assert phase.num_bytes == pytest.approx(seen, rel=TOLERANCE)


@pytest.mark.parametrize(("size", "infer_frames", "steps"), [(Size(704, 384), 48, 4), (Size(384, 256), 24, 3)])
def test_weights_and_caches_of_all_layers_are_exact(size: Size, infer_frames: int, steps: int) -> None:
    work = Workload(size, infer_frames, steps)
    with faked():
        dit = full_dit(40, injected=ModelSizes().dit.audio_inject_layers)
        vae = full_vae()
        with tracked(dit) as live:
            video = FakeVideo.begin(dit, work, live)
            like = video.sink.keys[0]
            windows = [video.window] + [
                WindowCache(num_layers=40, num_tokens=work.window_tokens, num_heads=40, head_dim=128, like=like)
                for _ in range(steps - 1)
            ]
            seen = {
                "transformer weights": storage_bytes(dit.parameters()),
                "VAE weights": storage_bytes(vae.parameters()),
                "text keys and values": storage_bytes(x for kv in video.text for x in (kv.keys, kv.values)),
                "KV cache": storage_bytes(x for window in windows for x in (*window.keys, *window.values)),
                "sink": storage_bytes((*video.sink.keys, *video.sink.values)),
            }
    memory = memory_of(work)
    assert {name: bytes_of(memory, name) for name in seen} == seen
