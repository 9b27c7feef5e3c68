"""Presets: settings that belong together, under the names that users know."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydantic import computed_field

from serve_app.errors import InvalidRequestError, did_you_mean, shown
from serve_app.planning.geometry import Size
from serve_app.schemas.config import Frozen
from serve_app.schemas.render import InferFrames, NumClip, SampleSteps, WrittenSize, differences_from_default


class Preset(Frozen):
    """One row of the table below; `differences` says what in it is not the model's default."""

    name: str
    description: str
    size: WrittenSize
    num_clip: NumClip
    infer_frames: InferFrames
    sample_steps: SampleSteps
    enable_online_decode: bool

    @computed_field  # type: ignore[prop-decorator]
    @property
    def differences(self) -> tuple[str, ...]:
        said = differences_from_default(sample_steps=self.sample_steps, infer_frames=self.infer_frames)
        return tuple(said.values())

    @property
    def settings(self) -> dict[str, object]:
        """The fields of a RenderSpec that this preset sets."""
        return self.model_dump(exclude={"name", "description", "differences"})


_ALL = (
    Preset(
        name="fast_preview",
        description="a first look at portrait, voice and prompt, up to 28.8 s",
        size=Size(384, 256),
        num_clip=20,
        infer_frames=36,
        sample_steps=3,
        enable_online_decode=True,
    ),
    Preset(
        name="social",
        description="a clip for social media, up to 3 min 12 s",
        size=Size(688, 368),
        num_clip=100,
        infer_frames=48,
        sample_steps=3,
        enable_online_decode=True,
    ),
    Preset(
        name="high_fidelity",
        description="the best picture, up to 1 min 36 s",
        size=Size(704, 384),
        num_clip=50,
        infer_frames=48,
        sample_steps=4,
        enable_online_decode=True,
    ),
    Preset(
        name="long_video",
        description="a lecture or a podcast, up to 32 min",
        size=Size(688, 368),
        num_clip=1000,
        infer_frames=48,
        sample_steps=3,
        enable_online_decode=True,
    ),
)
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})


def find_preset(name: object) -> Preset:
    """Returns the preset of that name; raises InvalidRequestError that names all of them."""
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        raise InvalidRequestError(
            f"preset {shown(name)} does not exist{did_you_mean(name, PRESETS) if isinstance(name, str) else ''}",
            remedy=f"use one of {', '.join(PRESETS)}",
            param="preset",
        )
    return preset
