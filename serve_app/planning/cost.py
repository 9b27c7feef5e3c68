"""Time: arithmetic of every part, over what a card does of its peak, and what must be moved meanwhile.

    total = load + conditions + first block's way through the stages + blocks * period + the last block's decoding

The arithmetic is exact (held to counted FLOPs by a test); what a card does of its peak is calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from serve_app.planning.calibration import Calibration
from serve_app.planning.geometry import FRAMES_PER_BLOCK, LATENT_FRAMES_PER_BLOCK, Size
from serve_app.planning.hardware import GpuKind, is_called
from serve_app.planning.layout import ParallelLayout, share
from serve_app.planning.network import ELEMENT_BYTES, PUBLISHED, DiTDims, DType, ModelDims, SpeechEncoderDims
from serve_app.planning.vae_network import (
    VAEDims,
    attention_multiply_adds,
    grid_pixels,
    walk_decoder,
    walk_encoder,
)
from serve_app.planning.workload import MOTION_LATENTS, Workload

_HIDDEN_FPS = 50
_SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Prediction:
    """Seconds by phase, and what follows from them. `period_seconds` is one block's share of a running pipeline."""

    load_seconds: float
    conditioning_seconds: float
    call_seconds: float
    decode_seconds: float
    period_seconds: float
    first_frame_seconds: float
    generate_seconds: float
    total_seconds: float
    frames_per_second: float
    gpu_seconds_per_video_second: float
    kind: str
    """Where the constants come from: "analytic" or "measured"."""


def predict(
    work: Workload,
    layout: ParallelLayout,
    gpu: GpuKind,
    *,
    dtype: DType,
    calibration: Calibration,
    dims: ModelDims = PUBLISHED,
) -> Prediction:
    """Returns the time of one video on ranks that have their weights loaded; `load_seconds` is told beside it."""
    clock = _Clock(work, layout, gpu, ELEMENT_BYTES[dtype], calibration, dims)
    call, decode, conditioning = clock.call_seconds(), clock.decode_seconds(), clock.conditioning_seconds()
    stages = [len(layout.steps_of(stage, work.sample_steps)) * call for stage in range(layout.stages)]
    if layout.vae:
        period = max(*stages, decode)
    else:
        stages[-1] += decode
        period = max(stages)
    first_block = work.sample_steps * call + decode
    generate = first_block + (work.timeline.num_blocks - 1) * period
    total = conditioning + generate
    return Prediction(
        load_seconds=clock.load_seconds(),
        conditioning_seconds=conditioning,
        call_seconds=call,
        decode_seconds=decode,
        period_seconds=period,
        first_frame_seconds=conditioning + first_block,
        generate_seconds=generate,
        total_seconds=total,
        frames_per_second=FRAMES_PER_BLOCK / period,
        gpu_seconds_per_video_second=layout.world_size * total / work.timeline.seconds,
        kind=calibration.kind,
    )


@dataclass(frozen=True)
class _Clock:
    work: Workload
    layout: ParallelLayout
    gpu: GpuKind
    element: int
    calibration: Calibration
    dims: ModelDims

    def call_seconds(self) -> float:
        """Returns one denoising call of one stage: compute and weights' way overlap, traded tokens do not."""
        return max(self._compute_seconds(), self._weight_seconds()) + self._trade_seconds()

    def _compute_seconds(self) -> float:
        tflop = call_flops(self.work, self.dims.dit) / 1e12 / self.layout.ulysses
        measured = self.calibration.step_seconds
        if measured and self.layout.ulysses == 1 and is_called(self.gpu, self.calibration.gpu):
            return interpolated(measured, tflop)
        return tflop / (self.gpu.tflops * self.calibration.dit_efficiency)

    def _weight_seconds(self) -> float:
        units = sum(self.dims.dit.units) * self.element
        if self.layout.offload == "layers":
            return units / self.calibration.host_link_bytes_per_second
        if self.layout.weight_shards > 1:
            shards = self.layout.weight_shards
            return units * (shards - 1) / shards / self.gpu.link_bytes_per_second
        return 0.0

    def _trade_seconds(self) -> float:
        """Query, key, value and output change hands in every layer; a rank keeps its own part."""
        ranks = self.layout.ulysses
        if ranks == 1:
            return 0.0
        traded = 4 * self.work.block_tokens * self.dims.dit.dim * self.element / ranks * (ranks - 1) / ranks
        return self.dims.dit.num_layers * traded / self.gpu.link_bytes_per_second

    def decode_seconds(self) -> float:
        """Returns one block's decoding, by the rank with the widest strip."""
        ranks, columns = len(self.layout.decoding_ranks), self.work.size.latent_width
        strip = max(len(share(columns, ranks, index)) for index in range(ranks)) / columns
        return self._vae_seconds(decode_flops(self.dims.vae, self.work.size, strip=strip))

    def conditioning_seconds(self) -> float:
        """Returns text (its weights come over the host's link), portrait, first stretch of speech, sink."""
        text = self.dims.text.parameters * self.element / self.calibration.host_link_bytes_per_second
        portrait = self._vae_seconds(encode_flops(self.dims.vae, self.work.size))
        speech = speech_flops(self.dims.speech, self.work.encoded_speech_seconds) / self._dit_flops_per_second()
        sink = prefill_flops(self.work, self.dims.dit) / self.layout.ulysses / self._dit_flops_per_second()
        return text + portrait + speech + sink

    def load_seconds(self) -> float:
        """Returns how long the largest rank reads its weights."""
        shards = self.layout.weight_shards
        dit = sum(self.dims.dit.units) / shards + self.dims.dit.resident_parameters
        everything = (dit + self.dims.vae.parameters + self.dims.text.parameters) * self.element
        return everything / self.calibration.load_bytes_per_second

    def _vae_seconds(self, flops: float) -> float:
        return flops / (self.gpu.tflops * 1e12 * self.calibration.vae_efficiency)

    def _dit_flops_per_second(self) -> float:
        return self.gpu.tflops * 1e12 * self.calibration.dit_efficiency


def call_flops(work: Workload, dims: DiTDims) -> float:
    """Returns the FLOPs of one call with a full window, two per multiply-add, of all ulysses ranks together.

    Per layer: six projections (text keys and values are made once per video), attention to window and sink, to the
    text, feed-forward; per injector q and o and attention to five audio tokens; patches in and out.
    """
    tokens, dim = work.block_tokens, dims.dim
    key_tokens = work.window_tokens + work.size.cond_tokens
    layer = tokens * (6 * dim**2 + 2 * dim * dims.ffn_dim) + 2 * tokens * dim * (key_tokens + dims.text_len)
    injector = tokens * 2 * dim**2 + 2 * tokens * dim * (dims.num_audio_token + 1)
    patches = tokens * dim * 4 * (dims.in_dim + dims.out_dim)
    return 2.0 * (dims.num_layers * layer + dims.num_injectors * injector + patches)


def prefill_flops(work: Workload, dims: DiTDims) -> float:
    """Returns the FLOPs of the sink: condition tokens attend to themselves and the text, through all layers."""
    tokens, dim = work.size.cond_tokens, dims.dim
    layer = tokens * (6 * dim**2 + 2 * dim * dims.ffn_dim) + 2 * tokens * dim * (tokens + dims.text_len)
    return 2.0 * dims.num_layers * layer


@lru_cache(maxsize=4096)
def decode_flops(dims: VAEDims, size: Size, *, strip: float = 1.0) -> float:
    """Returns the FLOPs of decoding one block on a rank with `strip` of the width."""
    per_pixel = sum(layer.multiply_adds * (strip if layer.is_split else 1.0) for layer in walk_decoder(dims))
    layers = LATENT_FRAMES_PER_BLOCK * per_pixel * grid_pixels(dims, size)
    return 2.0 * (layers + attention_multiply_adds(dims, size))


@lru_cache(maxsize=4096)
def encode_flops(dims: VAEDims, size: Size) -> float:
    """Returns the FLOPs of encoding the still portrait: 19 latent frames."""
    per_pixel = sum(layer.multiply_adds for layer in walk_encoder(dims))
    attention = attention_multiply_adds(dims, size) / LATENT_FRAMES_PER_BLOCK
    return 2.0 * MOTION_LATENTS * (per_pixel * grid_pixels(dims, size) + attention)


@lru_cache(maxsize=4096)
def speech_flops(dims: SpeechEncoderDims, seconds: float) -> float:
    """Returns the FLOPs of encoding speech: two per parameter and hidden frame, convolutions at their own rates."""
    frames, rate, before, flops = seconds * _HIDDEN_FPS, seconds * _SAMPLE_RATE, 1, 0.0
    for width, kernel, stride in zip(dims.conv_dims, dims.kernels, dims.strides, strict=True):
        rate /= stride
        flops += 2 * rate * before * width * kernel
        before = width
    layer = 4 * dims.hidden**2 + 2 * dims.hidden * dims.intermediate
    return flops + 2 * frames * dims.num_layers * (layer + 2 * frames * dims.hidden)


def interpolated(points: tuple[tuple[float, float], ...], x: float) -> float:
    """Returns y at x, linear between neighbours, and proportional to x beyond the ends."""
    ordered = sorted(points)
    if x <= ordered[0][0] or len(ordered) == 1:
        return ordered[0][1] * x / ordered[0][0]
    for (low_x, low_y), (high_x, high_y) in pairwise(ordered):
        if x <= high_x:
            return low_y + (high_y - low_y) * (x - low_x) / (high_x - low_x)
    return ordered[-1][1] * x / ordered[-1][0]
