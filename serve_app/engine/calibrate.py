"""Calibration on a GPU: peaks and times of calls and decoding at full size, beside what planning foretells.

    python -m serve_app.engine.calibrate [--out FILE] [--size W*H ...] [--infer-frames N ...]

Needs torch alone; weights are random, about 60 GB. Writes `calibration.json` with the points that it was fitted to,
and prints the leave-one-out error. NVML, where it is installed, tells the driver and what this process really takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from serve_app.engine.bench import MODELS, Networks
from serve_app.engine.conditions import Conditions
from serve_app.engine.decoding import FrameDecoder
from serve_app.engine.rollout import ClipNoise, Rollout, RolloutPlan, drawn_distance
from serve_app.errors import AvatarError, InvalidRequestError
from serve_app.model.checkpoint import Placement, default_placement
from serve_app.model.config import ModelSizes
from serve_app.model.flow_match import euler_schedule
from serve_app.model.reference import MOTION_LATENTS
from serve_app.planning.calibration import DEFAULT_FILE, load_calibration
from serve_app.planning.cost import call_flops, decode_flops
from serve_app.planning.fitting import Origin, Peak, Point, as_json, fit, leave_one_out
from serve_app.planning.geometry import FRAMES_PER_BLOCK, Timeline, parse_size
from serve_app.planning.hardware import measured_kind
from serve_app.planning.layout import ParallelLayout
from serve_app.planning.memory import RankMemory, estimate
from serve_app.planning.network import DiTDims, DType, ModelDims, SpeechEncoderDims, TextEncoderDims
from serve_app.planning.vae_network import VAEDims
from serve_app.planning.workload import Workload

SIZES = ("384*256", "640*384", "704*384")
INFER_FRAMES = (24, 48)
REPEATS = 5
_PARTS = (
    "transformer weights",
    "VAE weights",
    "text keys and values",
    "KV cache",
    "sink",
    "conditions",
    "decoder stream",
)


class Meter(Protocol):
    """What tells bytes and time of a device."""

    def allocated(self) -> int: ...
    def reset_peak(self) -> None: ...
    def peak(self) -> int:
        """Returns the most that was allocated since the reset."""
        ...

    def now(self) -> float: ...


class CudaMeter:
    """Torch's own counters; time after the device has caught up."""

    def allocated(self) -> int:
        return torch.cuda.memory_allocated()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def now(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes, and prints the errors; raises InvalidRequestError without a GPU."""
    options = _parser().parse_args(arguments)
    works = [
        Workload(parse_size(size), frames, sample_steps=1) for size in options.size for frames in options.infer_frames
    ]
    if not torch.cuda.is_available():
        raise InvalidRequestError(
            "there is no GPU to calibrate on",
            remedy="run this on the kind of GPU that will render; until then budgets are analytic",
            param="device",
        )
    sizes, _ = MODELS["full"]
    points = measure(sizes, default_placement(), works, CudaMeter())
    origin = _origin()
    calibration = fit(points, origin, base=load_calibration(DEFAULT_FILE))
    options.out.write_text(json.dumps(as_json(calibration, points), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{report(points)}\n{options.out}: written for {origin.gpu}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve_app.engine.calibrate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=DEFAULT_FILE, help=f"default {DEFAULT_FILE}")
    parser.add_argument("--size", nargs="+", default=SIZES, help="WIDTH*HEIGHT, multiples of 64")
    parser.add_argument("--infer-frames", nargs="+", type=int, default=INFER_FRAMES)
    return parser


def report(points: Sequence[Point]) -> str:
    """Returns a line per point: how far the fit to all others is from it."""
    return "\n".join(
        f"{left.point.size:<10} infer_frames {left.point.infer_frames:<4} memory {left.memory_error:+.2%}  "
        f"time {left.time_error:+.2%}  (left out)"
        for left in leave_one_out(points)
    )


@torch.inference_mode()
def measure(
    sizes: ModelSizes, placement: Placement, works: Sequence[Workload], meter: Meter, *, repeats: int = REPEATS
) -> list[Point]:
    """Returns a point per workload, on one rank that owns one step."""
    before = meter.allocated()
    networks = Networks(sizes, placement)
    others = sum(map(_num_bytes, (networks.text_encoder, networks.speech_encoder)))
    timer = _Timer(meter, repeats)
    return [_point(networks, dims_of(sizes), work, timer, foreign_bytes=before + others) for work in works]


def _point(networks: Networks, dims: ModelDims, work: Workload, timer: _Timer, *, foreign_bytes: int) -> Point:
    memory = _foretold(work, dims, networks.placement)
    video = _Video(networks, work)
    for block in range(work.timeline.blocks_per_clip + 1):  # a full window, and everything warm
        video.call(block)
        video.decode(block)
    resident = timer.meter.allocated() - foreign_bytes
    call_seconds, denoise_bytes = timer.measured(lambda: video.call(video.last))
    decode_seconds, decode_bytes = timer.measured(lambda: video.decode(video.last))
    return Point(
        size=str(work.size),
        infer_frames=work.infer_frames,
        call_tflop=call_flops(work, dims.dit) / 1e12,
        call_seconds=call_seconds,
        decode_tflop=decode_flops(dims.vae, work.size) / 1e12,
        decode_seconds=decode_seconds,
        denoise=Peak(denoise_bytes, _phase(memory, "denoise")),
        decode=Peak(decode_bytes, _phase(memory, "decode")),
        resident=Peak(resident, sum(part.num_bytes for part in memory.parts if part.name in _PARTS)),
        total_bytes=resident + max(denoise_bytes, decode_bytes),
    )


class _Video:
    """One video's calls and decoding, at any block that is near."""

    def __init__(self, networks: Networks, work: Workload) -> None:
        device, size = networks.device, work.size
        self.last = work.timeline.blocks_per_clip
        plan = RolloutPlan(
            size=size,
            timeline=Timeline((self.last + 1) * FRAMES_PER_BLOCK, work.infer_frames),
            schedule=euler_schedule(work.sample_steps),
            seed=0,
            replace_reference=False,
            distance=drawn_distance(0),
        )
        config = networks.dit.config
        motion = torch.zeros(config.in_dim, MOTION_LATENTS, size.latent_height, size.latent_width, device=device)
        text = torch.zeros(config.text_len, config.text_dim, device=device, dtype=networks.placement.dtype)
        self._plan = plan
        self._rollout = Rollout(networks.dit, Conditions(text=text, motion=motion), plan, steps=plan.schedule.steps)
        self._decoder = FrameDecoder(networks.vae, motion)
        self._voice = torch.zeros(1, config.num_audio_states, config.audio_dim, FRAMES_PER_BLOCK)
        self._latents = ClipNoise(plan, config.in_dim).of(plan.timeline.position(0)).to(device)

    def call(self, block: int) -> None:
        self._rollout.begin(self._plan.timeline.position(block), self._voice)
        self._rollout.denoise(self._latents, 0)

    def decode(self, block: int) -> None:
        self._decoder.decode(self._latents, self._plan.timeline.position(block))


@dataclass(frozen=True)
class _Timer:
    """Measures the same work several times."""

    meter: Meter
    repeats: int

    def measured(self, work: Callable[[], None]) -> tuple[float, int]:
        """Returns the median seconds, and the bytes at the worst moment on top of what was there."""
        seconds = []
        before = self.meter.allocated()
        self.meter.reset_peak()
        for _ in range(self.repeats):
            started = self.meter.now()
            work()
            seconds.append(self.meter.now() - started)
        return statistics.median(seconds), self.meter.peak() - before


def dims_of(sizes: ModelSizes) -> ModelDims:
    """Returns the sizes of a model's networks in planning's words."""
    dit = {name: value for name, value in asdict(sizes.dit).items() if name in DiTDims.__dataclass_fields__}
    vae = {name: value for name, value in asdict(sizes.vae).items() if name in VAEDims.__dataclass_fields__}
    speech = sizes.speech
    return ModelDims(
        dit=DiTDims(**dit, num_injectors=len(sizes.dit.audio_inject_layers)),
        vae=VAEDims(**vae),
        text=TextEncoderDims(**asdict(sizes.text)),
        speech=SpeechEncoderDims(
            hidden=speech["hidden_size"],
            num_layers=speech["num_hidden_layers"],
            intermediate=speech["intermediate_size"],
            conv_dims=tuple(speech["conv_dim"]),
        ),
    )


def _foretold(work: Workload, dims: ModelDims, placement: Placement) -> RankMemory:
    dtype: DType = "bfloat16" if placement.dtype is torch.bfloat16 else "float32"
    (memory,) = estimate(work, ParallelLayout(), dtype=dtype, calibration=load_calibration(DEFAULT_FILE), dims=dims)
    return memory


def _phase(memory: RankMemory, name: str) -> int:
    return next(phase.num_bytes for phase in memory.phases if phase.name == name)


def _num_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _origin() -> Origin:
    name, total = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    driver, used = _nvml_facts()
    if not used:
        free, total = torch.cuda.mem_get_info()
        used = total - free
    return Origin(
        gpu=name,
        driver=driver,
        torch=torch.__version__,
        commit=_commit(),
        date=datetime.now(UTC).date().isoformat(),
        tflops=measured_kind(name, total).tflops,
        context_bytes=max(0, used - torch.cuda.memory_reserved()),
    )


def _nvml_facts() -> tuple[str, int]:
    """Returns driver and bytes of this process by NVML, or nothing where it is not installed or does not say."""
    with suppress(Exception):  # a missing library, an old driver, a container that hides processes: all mean "not told"
        import os

        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        own = [process.usedGpuMemory or 0 for process in processes if process.pid == os.getpid()]
        return str(pynvml.nvmlSystemGetDriverVersion()), sum(own)
    return "", 0


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    with suppress(OSError):
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # noqa: S603
        return done.stdout.strip()
    return ""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AvatarError as error:
        sys.stderr.write(f"calibrate: {error}\n")
        sys.exit(error.exit_code)
