"""Workload: what of a video decides how much memory and time it takes."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.errors import InvalidRequestError, shown
from serve_app.planning.geometry import (
    FPS,
    LATENT_FRAMES_PER_BLOCK,
    SIZE_MULTIPLE,
    Size,
    Timeline,
    check_infer_frames,
)

MOTION_LATENTS = 19
"""Latent frames of the still portrait before the video begins."""
WHOLE_SPEECH_SECONDS = 60.0
"""Speech up to this length is encoded whole (`model.speech_encoder`), which takes the most memory."""
SPEECH_WINDOW_SECONDS = 19.0
"""Longer speech is encoded in windows: 8 s, 1 s of the next, 5 s heard before and behind."""


@dataclass(frozen=True)
class Workload:
    """One video: effective size, KV window, steps and length. `speech_seconds` is the whole speech's.

    The default speech is the one that needs the most memory; give the true one where it is known.
    """

    size: Size
    infer_frames: int = 48
    sample_steps: int = 4
    num_frames: int = round(WHOLE_SPEECH_SECONDS * FPS)
    speech_seconds: float = WHOLE_SPEECH_SECONDS

    def __post_init__(self) -> None:
        check_infer_frames(self.infer_frames)
        _check_grid(self.size)
        for name in ("sample_steps", "num_frames"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(
                    f"{name} {getattr(self, name)} is below 1", remedy="use 1 or more", param=name
                )
        if not self.speech_seconds > 0:
            raise InvalidRequestError(
                f"speech of {shown(self.speech_seconds)} s has no sound", remedy="give a voice", param="audio"
            )

    @property
    def timeline(self) -> Timeline:
        return Timeline(self.num_frames, self.infer_frames)

    @property
    def block_tokens(self) -> int:
        """Query tokens of one call: 3 S."""
        return LATENT_FRAMES_PER_BLOCK * self.size.tokens_per_frame

    @property
    def window_tokens(self) -> int:
        """Tokens of a full KV window: S per latent frame of `infer_frames`."""
        return self.timeline.window_latent_frames * self.size.tokens_per_frame

    @property
    def encoded_speech_seconds(self) -> float:
        """The longest stretch of speech that is encoded at once."""
        return self.speech_seconds if self.speech_seconds <= WHOLE_SPEECH_SECONDS else SPEECH_WINDOW_SECONDS


def _check_grid(size: Size) -> None:
    if size.width % SIZE_MULTIPLE or size.height % SIZE_MULTIPLE:
        raise InvalidRequestError(
            f"size {size} is not a multiple of {SIZE_MULTIPLE} on both sides",
            remedy="plan with the effective size, as geometry.effective_size gives it",
            param="size",
        )
