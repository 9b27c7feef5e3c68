"""The real networks at full size on fake tensors: nothing is computed, but every storage comes and goes as in a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from serve_app.model.audio_injector import AudioConditions
from serve_app.model.config import DiTConfig, VAEConfig
from serve_app.model.dit import CausalDiT
from serve_app.model.kv_cache import BlockMemory, Sink, WindowCache
from serve_app.model.layers import KeyValues, TimeEmbedding
from serve_app.model.reference import MOTION_LATENTS, motion_table
from serve_app.model.rope import RopeGrid, RopeTable, join
from serve_app.model.vae import VideoVAE
from serve_app.planning.geometry import FRAMES_PER_BLOCK, LATENT_FRAMES_PER_BLOCK, Size
from serve_app.planning.workload import Workload
from tests.planning.live_storage import LiveStorage, all_tensors, default_dtype

PROMPT_TOKENS = 100


@contextmanager
def faked(dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    with torch.inference_mode(), FakeTensorMode(), default_dtype(dtype):
        yield


def full_dit(num_layers: int, *, injected: tuple[int, ...] = ()) -> CausalDiT:
    """Returns the published transformer with so many of its layers, audio injected behind some."""
    config = replace(DiTConfig(), num_layers=num_layers, audio_inject_layers=injected)
    return CausalDiT(config).eval().requires_grad_(False)


def full_vae() -> VideoVAE:
    return VideoVAE(VAEConfig()).eval().requires_grad_(False)


def latents(size: Size, frames: int) -> Tensor:
    return torch.zeros(16, frames, size.latent_height, size.latent_width, dtype=torch.float32)


@dataclass
class FakeVideo:
    """One video's memory on a transformer: made as `engine.rollout` makes it."""

    dit: CausalDiT
    work: Workload
    live: LiveStorage
    text: list[KeyValues]
    sink: Sink
    window: WindowCache
    rope: RopeTable
    sink_rope: RopeTable

    @classmethod
    def begin(cls, dit: CausalDiT, work: Workload, live: LiveStorage) -> FakeVideo:
        size = work.size
        shape = {"head_dim": dit.config.head_dim, "precision": "float16", "device": torch.device("cpu")}
        grid = RopeGrid(range(size.latent_height // 2), range(size.latent_width // 2), **shape)  # type: ignore[arg-type]
        motion_rope = motion_table(size.latent_height, size.latent_width, **shape)  # type: ignore[arg-type]
        sink_rope = join([grid.at([30]), motion_rope])
        text = dit.embed_text(torch.zeros(PROMPT_TOKENS, dit.config.text_dim))
        sink = dit.prefill_sink(latents(size, 1), latents(size, MOTION_LATENTS), text=text, rope=sink_rope)
        keys = sink.keys[0]
        window = WindowCache(
            num_layers=dit.config.num_layers,
            num_tokens=work.window_tokens,
            num_heads=keys.shape[2],
            head_dim=keys.shape[3],
            like=keys,
        )
        rope = grid.at(range(LATENT_FRAMES_PER_BLOCK))
        return cls(dit, work, live, text, sink, window, rope, sink_rope)

    @property
    def blocks_per_window(self) -> int:
        return self.work.infer_frames // FRAMES_PER_BLOCK

    def prepare(self) -> tuple[TimeEmbedding, AudioConditions]:
        """Makes what a call needs besides latents: step and voice."""
        voice = torch.zeros(1, 25, self.dit.config.audio_dim, FRAMES_PER_BLOCK)
        return self.dit.embed_time(500.0), self.dit.embed_audio(voice)

    def call(self, block: int) -> int:
        """Makes one call of block 0, 1, ...; returns the bytes that it took on top of what was there."""
        tokens, blocks = self.work.block_tokens, self.blocks_per_window
        memory = BlockMemory(
            sink=self.sink,
            window=self.window,
            sink_rope=self.sink_rope,
            start=block % blocks * tokens,
            filled=min(block + 1, blocks) * tokens,
        )
        time, audio = self.prepare()
        noisy = latents(self.work.size, LATENT_FRAMES_PER_BLOCK)
        return peak_of(
            self.live,
            lambda: self.dit(noisy, time=time, text=self.text, audio=audio, rope=self.rope, memory=memory),
        )


def peak_of(live: LiveStorage, work: Callable[[], object]) -> int:
    """Returns the most bytes that `work` held on top of what was there before."""
    before = live.live_bytes
    live.reset_peak()
    work()
    return live.peak_bytes - before


def tracked(*modules: torch.nn.Module) -> LiveStorage:
    """Returns a tracker to which the modules' weights are no news."""
    return LiveStorage(ignored=[tensor for module in modules for tensor in all_tensors(module)])
