"""Benchmark of the model plane: seconds of each part of a video, beside what the machine can do.

    python -m serve_app.engine.bench [--model tiny|full] [--size 128*128 ...] [--json FILE]

Needs torch alone; weights are random. "full" is the published size and takes about 60 GB on a GPU.
Times are medians after a warm-up; encoding the video is not part of this benchmark.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from serve_app.engine.conditioning import MOTION_FRAMES
from serve_app.engine.conditions import Conditions
from serve_app.engine.decoding import FrameDecoder, to_pixels
from serve_app.engine.peak_memory import peak_bytes, reset_peak
from serve_app.engine.rollout import ClipNoise, Rollout, RolloutPlan, drawn_distance
from serve_app.model.checkpoint import Placement, default_placement
from serve_app.model.config import ModelSizes
from serve_app.model.dit import CausalDiT
from serve_app.model.flow_match import euler_schedule
from serve_app.model.speech_encoder import SAMPLE_RATE, SpeechEncoder, SpeechFeatures, speech_config
from serve_app.model.text_encoder import TextEncoder
from serve_app.model.tiny import TINY
from serve_app.model.vae import VideoVAE
from serve_app.planning.geometry import (
    FPS,
    FRAMES_PER_BLOCK,
    BlockPosition,
    Size,
    Timeline,
    check_infer_frames,
    exact_size,
    parse_size,
)

MODELS = {TINY.name: (TINY, "128*128"), "full": (ModelSizes(), "384*256")}
SPEECH_SECONDS = 10
PROMPT_TOKENS = 100
REPEATS = 5
MATMUL_SIDE = {"cpu": 4096, "cuda": 8192}

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Part:
    """One part of the work: how often it comes, what it takes, and how much arithmetic it is."""

    name: str
    per: str
    seconds: float
    tflop: float

    def row(self, ceiling_tflops: float) -> str:
        rate = self.tflop / self.seconds
        return (
            f"{self.name:<24}{self.per:<10}{self.seconds * 1e3:>10.1f} ms{self.tflop:>10.4f} TFLOP"
            f"{rate:>9.3f} TFLOP/s{rate / ceiling_tflops:>8.1%}"
        )


@dataclass(frozen=True)
class Report:
    """All figures of one model at one size; `ceiling_tflops` is a large matmul in the same dtype."""

    model: str
    size: str
    infer_frames: int
    sample_steps: int
    device: str
    dtype: str
    torch: str
    threads: int
    ceiling_tflops: float
    parts: tuple[Part, ...]
    block_seconds: float
    frames_per_second: float
    peak_bytes: int

    def table(self) -> str:
        head = (
            f"{self.model} {self.size}, infer_frames {self.infer_frames}, {self.sample_steps} steps, {self.dtype} on "
            f"{self.device}, torch {self.torch}, {self.threads} threads; "
            f"ceiling {self.ceiling_tflops:.3f} TFLOP/s (matmul)"
        )
        foot = (
            f"block {self.block_seconds * 1e3:.1f} ms = {self.frames_per_second:.1f} frames per second "
            f"({self.frames_per_second / FPS:.2f}x real time), peak memory {self.peak_bytes / 2**20:.0f} MiB"
        )
        return "\n".join([head, *(part.row(self.ceiling_tflops) for part in self.parts), foot])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one table per size."""
    options = _parser().parse_args(arguments)
    check_infer_frames(options.infer_frames)
    sizes, default_size = MODELS[options.model]
    placement = default_placement()
    networks = Networks(sizes, placement)
    reports = [
        measure(networks, exact_size(parse_size(size)), options.infer_frames, options.sample_steps)
        for size in options.size or [default_size]
    ]
    for report in reports:
        sys.stdout.write(report.table() + "\n\n")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(report) for report in reports], indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve_app.engine.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", choices=sorted(MODELS), default=TINY.name)
    parser.add_argument("--size", nargs="+", help="WIDTH*HEIGHT, multiples of 64; several give several tables")
    parser.add_argument("--infer-frames", type=int, default=48)
    parser.add_argument("--sample-steps", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    return parser


class Networks:
    """All networks of one model with random weights, made on the device."""

    def __init__(self, sizes: ModelSizes, placement: Placement) -> None:
        self.name = sizes.name
        self.placement = placement
        self.dit = _random(lambda: CausalDiT(sizes.dit), placement)
        self.vae = _random(lambda: VideoVAE(sizes.vae), placement).tuned()
        self.text_encoder = _random(lambda: TextEncoder(sizes.text), placement)
        self.speech_encoder = _random(lambda: SpeechEncoder(speech_config(sizes.speech)), placement)

    @property
    def device(self) -> torch.device:
        return self.placement.device


def _random(make: Callable[[], _Module], placement: Placement) -> _Module:
    with torch.device("meta"):
        module = make().eval().requires_grad_(False).to(placement.dtype)
    module.to_empty(device=placement.device)
    generator = torch.Generator(placement.device).manual_seed(0)
    for parameter in module.parameters():
        parameter.normal_(std=0.02, generator=generator)
    return module


@torch.inference_mode()
def measure(networks: Networks, size: Size, infer_frames: int, sample_steps: int) -> Report:
    """Measures every part at one size, the blocks with full windows."""
    device = networks.device
    reset_peak(device)
    plan = RolloutPlan(
        size=size,
        timeline=Timeline(SPEECH_SECONDS * FPS, infer_frames),
        schedule=euler_schedule(sample_steps),
        seed=0,
        replace_reference=False,
        distance=drawn_distance(0),
    )
    parts, conditions, voice = _condition(networks, size)
    rollout = Rollout(networks.dit, conditions, plan, steps=plan.schedule.steps)
    parts.append(_timed("sink prefill", "clip 0, 1", lambda: rollout.prefill(conditions.reference), device))
    block_parts, block_seconds = _measure_blocks(networks, rollout, conditions, voice)
    return Report(
        model=networks.name,
        size=str(size),
        infer_frames=infer_frames,
        sample_steps=sample_steps,
        device=_device_name(device),
        dtype=str(networks.placement.dtype).removeprefix("torch."),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        ceiling_tflops=_matmul_ceiling(networks.placement),
        parts=(*parts, *block_parts),
        block_seconds=block_seconds,
        frames_per_second=FRAMES_PER_BLOCK / block_seconds,
        peak_bytes=peak_bytes(device),
    )


def _condition(networks: Networks, size: Size) -> tuple[list[Part], Conditions, SpeechFeatures]:
    device = networks.device
    ids = torch.arange(PROMPT_TOKENS, device=device)
    speech = torch.rand(SPEECH_SECONDS * SAMPLE_RATE) - 0.5
    still = torch.zeros(3, 1, size.height, size.width, device=device).expand(-1, MOTION_FRAMES, -1, -1)
    one_block = range(FRAMES_PER_BLOCK)
    parts = [
        _timed("text encoder", "video", lambda: networks.text_encoder(ids), device),
        _timed(
            f"speech encoder, {SPEECH_SECONDS} s",
            "video",
            lambda: SpeechFeatures(networks.speech_encoder, speech).frames(one_block),
            device,
        ),
        _timed(f"VAE encode, {MOTION_FRAMES} frames", "video", lambda: networks.vae.encode(still), device),
    ]
    conditions = Conditions(text=networks.text_encoder(ids), motion=networks.vae.encode(still))
    return parts, conditions, SpeechFeatures(networks.speech_encoder, speech)


@dataclass(frozen=True)
class _BlockTimes:
    """Seconds of every call, of the decoding and of all of one block."""

    calls: tuple[float, ...]
    decode: float
    total: float


def _measure_blocks(
    networks: Networks, rollout: Rollout, conditions: Conditions, voice: SpeechFeatures
) -> tuple[list[Part], float]:
    """Makes blocks until the windows are full, then measures the next ones: parts, and seconds per block."""
    decoder = FrameDecoder(networks.vae, conditions.motion)
    warm_up = rollout.plan.timeline.blocks_per_clip + 1
    blocks = [rollout.plan.timeline.position(index) for index in range(warm_up + REPEATS)]
    noise = ClipNoise(rollout.plan, conditions.motion.shape[0])
    times = [_time_block(rollout, decoder, block, noise, voice, networks.device) for block in blocks][warm_up:]
    last = blocks[-1]
    latents = noise.of(last).to(networks.device)
    parts = [
        Part(
            "DiT call",
            "call",
            statistics.median(seconds for block in times for seconds in block.calls),
            _tflop(lambda: rollout.denoise(latents, 0)),
        ),
        Part(
            "VAE decode",
            "block",
            statistics.median(block.decode for block in times),
            _tflop(lambda: decoder.decode(latents, last)),
        ),
    ]
    return parts, statistics.median(block.total for block in times)


def _time_block(
    rollout: Rollout,
    decoder: FrameDecoder,
    block: BlockPosition,
    noise: ClipNoise,
    voice: SpeechFeatures,
    device: torch.device,
) -> _BlockTimes:
    started = _now(device)
    frames = range(block.index * FRAMES_PER_BLOCK, (block.index + 1) * FRAMES_PER_BLOCK)
    rollout.begin(block, voice.frames(frames))
    latents = noise.of(block).to(device)
    clock = [_now(device)]
    for step in rollout.plan.schedule.steps:
        latents = rollout.denoise(latents, step)
        clock.append(_now(device))
    to_pixels(decoder.decode(latents, block)).cpu()
    clock.append(_now(device))
    spans = [later - earlier for earlier, later in pairwise(clock)]
    return _BlockTimes(calls=tuple(spans[:-1]), decode=spans[-1], total=clock[-1] - started)


def _timed(name: str, per: str, work: Callable[[], object], device: torch.device) -> Part:
    work()
    seconds = []
    for _ in range(REPEATS):
        started = _now(device)
        work()
        seconds.append(_now(device) - started)
    return Part(name, per, statistics.median(seconds), _tflop(work))


def _tflop(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_convolution: _conv_flop}) as counter:
        work()
    return counter.get_total_flops() / 1e12


def _conv_flop(x: Sequence[int], weight: Sequence[int], *_: object, out_shape: Sequence[int]) -> int:
    return conv_flop_count(list(x), list(weight), list(out_shape))


def _matmul_ceiling(placement: Placement) -> float:
    """Returns the TFLOP/s of a large square matmul in this dtype: the best of several."""
    side = MATMUL_SIDE[placement.device.type]
    a, b = torch.randn(2, side, side, device=placement.device).to(placement.dtype)
    seconds = []
    for _ in range(REPEATS + 1):
        started = _now(placement.device)
        torch.mm(a, b)
        seconds.append(_now(placement.device) - started)
    return 2 * side**3 / min(seconds[1:]) / 1e12


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
