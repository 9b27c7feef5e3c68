"""The causal transformer against the reference: sink prefills, denoising calls, caches, speakers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.model.config import DiTConfig
from serve_app.model.dit import CausalDiT
from serve_app.model.flow_match import euler_step
from serve_app.model.kv_cache import BlockMemory, Sink, WindowCache
from serve_app.model.reference import motion_table, reference_position
from serve_app.model.rope import RopeGrid, RopeTable, join
from tests.parity.golden import Golden, cases, largest_error, load, load_weights

VELOCITY_TOLERANCE = 2e-5
CACHE_TOLERANCE = 2e-5
SIDE_TOLERANCE = 1e-6


class Replay:
    """Runs the listed calls of one case through the model, as the rollout does."""

    def __init__(self, golden: Golden) -> None:
        spec = golden.spec
        self.golden = golden
        self.dit = CausalDiT(DiTConfig.from_json(spec["config"])).eval()
        self.dit.load_state_dict(load_weights(golden))
        tables: dict[str, Any] = {
            "head_dim": self.dit.config.head_dim,
            "precision": spec["rope_table_precision"],
            "device": torch.device("cpu"),
        }
        self.grid = RopeGrid(range(spec["latent_h"] // 2), range(spec["latent_w"] // 2), **tables)
        self.motion = motion_table(spec["latent_h"], spec["latent_w"], **tables)
        config = self.dit.config
        self.windows = [
            WindowCache(
                num_layers=config.num_layers,
                num_tokens=spec["kv_cache_tokens"],
                num_heads=config.num_heads,
                head_dim=config.head_dim,
                like=torch.zeros(()),
            )
            for _ in range(spec["kv_caches"])
        ]
        self.text = self.dit.embed_text(golden.tensors["context"])
        self.sink = Sink()

    def table(self, frames: list[int]) -> RopeTable:
        return self.grid.at(frames)

    def sink_table(self, position: int) -> RopeTable:
        return join([self.table([position]), self.motion])

    def prefill(self, call: dict[str, Any]) -> RopeTable:
        tensors = self.golden.tensors
        rope = self.sink_table(reference_position(0, self.golden.spec["relative_dist"]))
        self.sink = self.dit.prefill_sink(
            tensors[call["inputs"]["ref_latents"]][0],
            tensors[call["inputs"]["motion_latents"]][0],
            text=self.text,
            rope=rope,
            keep_motion=not call["drop_motion_frames"],
        )
        return rope

    def denoise(self, call: dict[str, Any]) -> Tensor:
        tensors, spec = self.golden.tensors, self.golden.spec
        first, start = call["first_frame"], call["kv_write_start"]
        latents = tensors[call["x"]]
        tokens = latents.shape[1] * spec["tokens_per_frame"]
        memory = BlockMemory(
            sink=self.sink,
            window=self.windows[call["kv_cache"]],
            sink_rope=self.sink_table(reference_position(first, spec["relative_dist"])),
            start=start,
            filled=spec["kv_cache_tokens"] if call["kv_rolled_over"] else start + tokens,
        )
        return self.dit(
            latents,
            time=self.dit.embed_time(call["timestep"]),
            text=self.text,
            audio=self.dit.embed_audio(tensors[call["audio"]], tensors.get("mask")),
            rope=self.table(list(range(first, first + latents.shape[1]))),
            memory=memory,
            pose_CTHW=tensors["cond_states"][0],
        )


@pytest.mark.parametrize("path", cases("dit"), ids=lambda path: path.stem)
def test_every_call_matches_the_reference(path: Path, record_property: Any) -> None:
    golden = load(path)
    with torch.inference_mode():
        errors = _replay_errors(Replay(golden))
    for name, (error, tolerance) in errors.items():
        record_property(name, error)
        assert error <= tolerance, f"{path.stem} {name}: {error:.2e} > {tolerance:.0e}"


def _replay_errors(replay: Replay) -> dict[str, tuple[float, float]]:
    """Largest error and tolerance by kind of tensor, after replaying every call in order."""
    golden = replay.golden
    errors: dict[str, tuple[float, float]] = {}

    def note(kind: str, actual: Tensor, name: str, tolerance: float) -> None:
        error = largest_error(actual, golden.tensors[name])
        errors[kind] = (max(error, errors.get(kind, (0.0, tolerance))[0]), tolerance)

    for call in golden.spec["calls"]:
        if call["kind"] == "sink_prefill":
            rope = replay.prefill(call)
            _check_sink(replay, call, rope, note)
        else:
            velocity = replay.denoise(call)
            note("velocity", velocity, call["velocity"], VELOCITY_TOLERANCE)
            _check_update(replay, call, note)
    _check_final_cache(replay, note)
    return errors


def _check_sink(replay: Replay, call: dict[str, Any], rope: RopeTable, note: Any) -> None:
    tag = call["tag"]
    for kind, stored in (("k", replay.sink.keys), ("v", replay.sink.values)):
        names = [name for name in replay.golden.tensors if name.startswith(f"{tag}.cond_{kind}.")]
        assert names, f"the case stores no {kind} for {tag}"
        for name in names:
            note("sink", stored[int(name.rsplit(".", 1)[1])], name, CACHE_TOLERANCE)
    if f"{tag}.rope_real" in replay.golden.tensors and not call["drop_motion_frames"]:
        note("rope", rope.cos, f"{tag}.rope_real", SIDE_TOLERANCE)
        note("rope", rope.sin, f"{tag}.rope_imag", SIDE_TOLERANCE)


def _check_update(replay: Replay, call: dict[str, Any], note: Any) -> None:
    if call["x_next"] is None:
        return
    sigmas, tensors = replay.golden.spec["sigmas"], replay.golden.tensors
    updated = euler_step(
        tensors[call["x"]],
        tensors[call["velocity"]],
        sigma=sigmas[call["step"]],
        next_sigma=sigmas[call["step"] + 1],
    )
    note("euler", updated, call["x_next"], SIDE_TOLERANCE)


def _check_final_cache(replay: Replay, note: Any) -> None:
    names = [name for name in replay.golden.tensors if name.startswith("final_cache.")]
    assert names, "the case stores no final cache"
    for name in names:
        _, step, kind, layer = name.split(".")
        window = replay.windows[int(step.removeprefix("s"))]
        stored = window.keys if kind == "k" else window.values
        note("window", stored[int(layer)], name, CACHE_TOLERANCE)
