"""Parallel layouts: how the ranks of one video share the work, and which rank does what.

A rank of a stage runs denoising steps; `stages` and `ulysses` are the axes of their mesh: rank = stage * ulysses +
place on the ulysses axis. VAE ranks come after them and only decode; without any, the last stage decodes as well.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from serve_app.errors import InvalidRequestError, did_you_mean, shown
from serve_app.planning.geometry import PIXELS_PER_LATENT

Offload = Literal["none", "layers"]
OFFLOADS: tuple[Offload, ...] = ("none", "layers")

NUM_HEADS = 40
"""Attention heads of the published transformer."""
MAX_STAGES = 16
MAX_ULYSSES = 64
MAX_VAE = 8
"""The narrowest picture, of 64 pixels, has 8 latent columns to share."""
SINGLE = "single"
_GRAMMAR = "write single, or some of stages=,ulysses=,vae=,weight_shards=,offload= with commas, for example {example}"


class Role(enum.StrEnum):
    """What a rank is there for."""

    STAGE = "stage"
    VAE = "vae"


@dataclass(frozen=True)
class RankPlace:
    """Where a rank stands: a STAGE rank at (stage, ulysses), a VAE rank at `vae`; what does not apply is 0."""

    rank: int
    role: Role
    stage: int = 0
    ulysses: int = 0
    vae: int = 0

    def __str__(self) -> str:
        if self.role is Role.VAE:
            return f"vae {self.vae}"
        return f"stage {self.stage}, ulysses {self.ulysses}"


@dataclass(frozen=True)
class ParallelLayout:
    """Stages of denoising steps, a ulysses axis over heads in each, VAE ranks, sharded or streamed weights.

    `weight_shards` is 1 (every rank holds whole weights) or `ulysses`. `offload` "layers" streams the layers from
    host memory. Raises InvalidRequestError for a value that breaks a rule of its own; `check_layout` holds the rest.
    """

    stages: int = 1
    ulysses: int = 1
    vae: int = 0
    weight_shards: int = 1
    offload: Offload = "none"

    def __post_init__(self) -> None:
        _check_count("stages", self.stages, least=1, most=MAX_STAGES)
        _check_count("ulysses", self.ulysses, least=1, most=MAX_ULYSSES)
        _check_count("vae", self.vae, least=0, most=MAX_VAE)
        _check_count("weight_shards", self.weight_shards, least=1, most=MAX_ULYSSES)
        if self.offload not in OFFLOADS:
            raise _invalid(f"offload={shown(self.offload)} is neither none nor layers", "use offload=layers, or none")
        if self.weight_shards > 1:
            self._check_shards()

    def _check_shards(self) -> None:
        whole = f"weight_shards={self.weight_shards}"
        if self.weight_shards != self.ulysses:
            raise _invalid(
                f"{whole} with ulysses={self.ulysses}: weights are whole (1) or sharded over the ulysses axis",
                f"use weight_shards=1 or weight_shards={self.ulysses}"
                if self.ulysses > 1
                else f"use weight_shards=1, or ulysses={self.weight_shards},{whole}",
            )
        if self.stages > 1:
            raise _invalid(
                f"{whole} with stages={self.stages}: sharded weights are gathered layer by layer, on one stage only",
                f"use stages=1, or weight_shards=1 with stages={self.stages}",
            )
        if self.offload != "none":
            raise _invalid(
                f"{whole} with offload=layers: a layer comes from the other ranks or from the host, not from both",
                "use weight_shards=1 with offload=layers, or offload=none",
            )

    @classmethod
    def parse(cls, text: str) -> ParallelLayout:
        """Reads "single", "stages=4,vae=1" or the name of a hardware preset such as "5x80"."""
        written = text.strip()
        if written in HARDWARE_PRESETS:
            return HARDWARE_PRESETS[written].layout
        return cls() if written == SINGLE else cls(**_settings(written))

    def __str__(self) -> str:
        """Returns the canonical spelling: what differs from `single`, in the order of the fields."""
        settings = [(field.name, getattr(self, field.name)) for field in fields(self) if not self._is_default(field)]
        return ",".join(f"{name}={value}" for name, value in settings) or SINGLE

    def _is_default(self, field: object) -> bool:
        return bool(getattr(self, field.name) == field.default)  # type: ignore[attr-defined]

    @property
    def world_size(self) -> int:
        return self.num_stage_ranks + self.vae

    @property
    def num_stage_ranks(self) -> int:
        return self.stages * self.ulysses

    @property
    def decoding_ranks(self) -> range:
        """The ranks that decode, each a strip of the picture's width: VAE ranks, or without them the last stage."""
        if self.vae:
            return range(self.num_stage_ranks, self.world_size)
        return range(self.num_stage_ranks - self.ulysses, self.num_stage_ranks)

    def place(self, rank: int) -> RankPlace:
        """Returns where a rank of 0 .. world_size - 1 stands."""
        assert 0 <= rank < self.world_size, f"rank {rank} of {self.world_size}"
        if rank >= self.num_stage_ranks:
            return RankPlace(rank, Role.VAE, vae=rank - self.num_stage_ranks)
        stage, ulysses = divmod(rank, self.ulysses)
        return RankPlace(rank, Role.STAGE, stage=stage, ulysses=ulysses)

    def places(self) -> list[RankPlace]:
        return [self.place(rank) for rank in range(self.world_size)]

    def stage_rank(self, *, stage: int, ulysses: int) -> int:
        """Returns the rank that stands there."""
        return stage * self.ulysses + ulysses

    def steps_of(self, stage: int, sample_steps: int) -> range:
        """Returns the denoising steps that a stage owns, perhaps none."""
        return share(sample_steps, self.stages, stage)


def share(total: int, parts: int, index: int) -> range:
    """Returns what part `index` of `parts` has of 0 .. total - 1: index * total // parts up to the next part's."""
    assert 0 <= index < parts, f"part {index} of {parts}"
    return range(index * total // parts, (index + 1) * total // parts)


def check_layout(layout: ParallelLayout, *, num_heads: int, sample_steps: int) -> tuple[str, ...]:
    """Returns what a user should know of this layout with this model and so many steps.

    Raises InvalidRequestError unless `ulysses` divides the heads.
    """
    if num_heads % layout.ulysses:
        raise _invalid(
            f"ulysses={layout.ulysses} does not divide the model's {num_heads} attention heads",
            f"use ulysses={_listed(_divisors(num_heads, up_to=MAX_ULYSSES))}",
        )
    idle = [str(stage) for stage in range(layout.stages) if not layout.steps_of(stage, sample_steps)]
    if not idle:
        return ()
    named = f"stage {idle[0]} owns" if len(idle) == 1 else f"stages {', '.join(idle)} own"
    return (f"{named} no step: {layout.stages} stages share {sample_steps} steps, so latents pass through",)


def check_columns(layout: ParallelLayout, *, columns: int) -> None:
    """Raises InvalidRequestError when a rank that decodes would have none of the picture's latent columns."""
    ranks = len(layout.decoding_ranks)
    if ranks > columns:
        raise _invalid(
            f"layout {layout}: {ranks} ranks decode, but the picture has {columns} latent columns to share",
            f"use a picture {PIXELS_PER_LATENT * ranks} pixels wide or wider, or let a rank of its own decode: vae=1",
        )


def from_flags(
    *,
    num_gpus_dit: int = 1,
    ulysses_size: int = 1,
    enable_vae_parallel: bool = False,
    offload_model: bool = False,
    num_heads: int = NUM_HEADS,
) -> ParallelLayout:
    """Returns the layout of the flags that Live Avatar users know.

    ulysses = ulysses_size, stages = num_gpus_dit / ulysses_size, vae = enable_vae_parallel, offload = offload_model.
    Raises InvalidRequestError that names flags that work on as many GPUs.
    """
    _check_count("num_gpus_dit", num_gpus_dit, least=1, most=MAX_STAGES * MAX_ULYSSES)
    _check_count("ulysses_size", ulysses_size, least=1, most=MAX_ULYSSES)
    vae = int(enable_vae_parallel)
    problem = _flag_problem(num_gpus_dit, ulysses_size, num_heads)
    if problem:
        remedy = _working_flags(num_gpus_dit, vae, num_heads)
        raise _invalid(f"num_gpus_dit={num_gpus_dit} with ulysses_size={ulysses_size}: {problem}", remedy)
    return ParallelLayout(
        stages=num_gpus_dit // ulysses_size,
        ulysses=ulysses_size,
        vae=vae,
        offload="layers" if offload_model else "none",
    )


def _flag_problem(num_gpus_dit: int, ulysses_size: int, num_heads: int) -> str:
    if num_heads % ulysses_size:
        return f"ulysses_size does not divide the model's {num_heads} attention heads"
    if num_gpus_dit % ulysses_size:
        count = "1 GPU is" if num_gpus_dit == 1 else f"{num_gpus_dit} GPUs are"
        return f"{count} no whole number of stages of {ulysses_size}"
    return ""


def _working_flags(num_gpus_dit: int, vae: int, num_heads: int) -> str:
    """Names the ulysses sizes that work: with these flags otherwise as they are, and with VAE GPUs used for the DiT."""
    offers = [(num_gpus_dit, vae)] + ([(num_gpus_dit + vae, 0)] if vae else [(num_gpus_dit - 1, 1)])
    named = []
    for count, vae_count in offers:
        fitting = [
            size for size in _divisors(num_heads, up_to=count) if count % size == 0 and count // size <= MAX_STAGES
        ]
        if fitting:
            flag = "true" if vae_count else "false"
            named.append(f"num_gpus_dit={count}, ulysses_size={_listed(fitting)}, enable_vae_parallel={flag}")
    return "use " + "; or ".join(named or [f"ulysses_size={_listed(_divisors(num_heads, up_to=MAX_ULYSSES))}"])


def _settings(text: str) -> dict[str, Any]:  # the constructor checks what it is given
    """Reads "name=value,..."; raises InvalidRequestError for anything else."""
    settings: dict[str, Any] = {}
    names = [field.name for field in fields(ParallelLayout)]
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in names or not equals:
            hint = did_you_mean(name, [SINGLE, *HARDWARE_PRESETS] if not equals else names)
            raise _invalid(f"{shown(part.strip())} is no part of a layout{hint}", _GRAMMAR.format(example=_EXAMPLE))
        if name in settings:
            raise _invalid(f"layout {shown(text)} sets {name} twice", f"write {name}= once")
        settings[name] = value if name == "offload" else _count(name, value)
    return settings


def _count(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise _invalid(f"{name}={shown(value)} is not a whole number", f"write for example {name}=1")
    return int(value)


def _check_count(name: str, value: int, *, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _invalid(
            f"{name}={shown(value)} is not a whole number from {least} to {most}",
            f"use {name}={most if isinstance(value, int) and value > most else least}",
        )


def _divisors(number: int, *, up_to: int) -> list[int]:
    return [candidate for candidate in range(1, min(number, up_to) + 1) if number % candidate == 0]


def _listed(numbers: list[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last


def _invalid(message: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(message, remedy=remedy, param="layout")


# Below the helpers, for a layout checks itself when it is made.


@dataclass(frozen=True)
class HardwarePreset:
    """The layout for a machine of `num_gpus` cards of `memory_gb`; its name is what users call the machine."""

    num_gpus: int
    memory_gb: int
    layout: ParallelLayout

    @property
    def name(self) -> str:
        return f"{self.num_gpus}x{self.memory_gb}"


_ALL_PRESETS = (
    HardwarePreset(1, 80, ParallelLayout()),
    HardwarePreset(1, 24, ParallelLayout(offload="layers")),
    HardwarePreset(1, 48, ParallelLayout(offload="layers")),
    HardwarePreset(5, 80, ParallelLayout(stages=4, vae=1)),
    HardwarePreset(4, 24, ParallelLayout(ulysses=4, weight_shards=4)),
    HardwarePreset(8, 80, ParallelLayout(stages=4, ulysses=2)),
)
HARDWARE_PRESETS: Mapping[str, HardwarePreset] = MappingProxyType({preset.name: preset for preset in _ALL_PRESETS})
_EXAMPLE = "stages=4,vae=1"
