"""Speech encoder: wav2vec2 hidden states, picked for each video frame.

The waveform is cut into windows, so that a speech of any length needs the memory of one window; a speech
that fits one window is encoded whole, as the reference does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from serve_app.model.visit import run_on
from serve_app.planning.geometry import FPS

SAMPLE_RATE = 16_000
HIDDEN_FPS = 50
FEATURE_FPS = 30
"""Hidden states are resampled to 30 per second before frames are picked: the rate the model was trained with."""


_NORMALISED_AT_ONCE = 1 << 20


class SpeechEncoder(nn.Module):
    """Turns normalised speech into all hidden states; parameters under transformers' names in `self.wav2vec2`."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.wav2vec2 = Wav2Vec2Model(config)

    @property
    def num_states(self) -> int:
        """Hidden states per frame: the first layer's input and every layer's output."""
        return self.wav2vec2.config.num_hidden_layers + 1

    def forward(self, speech_N: Tensor, keep: slice = slice(None)) -> Tensor:
        """Returns hidden states [25, kept frames at 50 fps, C], on the CPU, of normalised speech [N] at 16 kHz.

        On the CPU, because a block needs 12 frames of them and the GPU is short of memory.
        """
        out = self.wav2vec2(speech_N[None].to(self.dtype), output_hidden_states=True)
        # The last entry belongs behind the final layer norm; transformers 5 lists it before.
        states = (*out.hidden_states[:-1], out.last_hidden_state)
        return torch.stack([state[0, keep].float().cpu() for state in states])

    @property
    def dtype(self) -> torch.dtype:
        return self.wav2vec2.feature_projection.projection.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.wav2vec2.feature_projection.projection.weight.device

    def num_hidden_frames(self, num_samples: int) -> int:
        """Returns the frames that the convolutions make of so many samples (about 50 per second)."""
        config = self.wav2vec2.config
        frames = num_samples
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            frames = (frames - kernel) // stride + 1
        return max(frames, 0)

    @property
    def hop_samples(self) -> int:
        hop = 1
        for stride in self.wav2vec2.config.conv_stride:
            hop *= stride
        return hop


def speech_config(sizes: Mapping[str, Any]) -> Wav2Vec2Config:
    """Returns the configuration of a wav2vec2 of the published kind (layer norms, not group norms) in these sizes."""
    return Wav2Vec2Config(**sizes, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True, vocab_size=33)


def normalise(speech_N: Tensor) -> Tensor:
    """Returns (x - mean) / sqrt(var + 1e-7) over the whole speech, population variance, float32 [N]."""
    # In float64, by parts: a float64 copy of hours of speech would take gigabytes.
    parts = speech_N.split(_NORMALISED_AT_ONCE)
    mean = sum(float(part.double().sum()) for part in parts) / len(speech_N)
    variance = sum(float((part.double() - mean).square().sum()) for part in parts) / len(speech_N)
    return speech_N.sub(mean).div_((variance + 1e-7) ** 0.5)


def resample_states(states_KTC: Tensor, num_out: int) -> Tensor:
    """Returns [K, num_out, C]: linear in time with both ends aligned (`align_corners`)."""
    return _interpolate(states_KTC, torch.arange(num_out), num_out, states_KTC.shape[1], first=0)


def feature_index(video_frame: int, fps: int = FPS) -> int:
    """Returns the 30 fps feature that a video frame hears: round half to even of frame / fps * 30."""
    return round(video_frame / fps * FEATURE_FPS)


def _interpolate(states_KTC: Tensor, targets: Tensor, num_out: int, num_in: int, *, first: int) -> Tensor:
    """Interpolates at `targets` of a grid of num_out points over num_in points, of which states start at `first`.

    Positions are float32, as in the library function that the model was trained with.
    """
    scale = torch.tensor((num_in - 1) / (num_out - 1) if num_out > 1 else 0.0, dtype=torch.float32)
    position = targets.float() * scale
    low = position.floor().long().clamp(max=num_in - 1)
    high = (low + 1).clamp(max=num_in - 1)
    weight = (position - low)[:, None]
    return states_KTC[:, low - first] * (1 - weight) + states_KTC[:, high - first] * weight


@dataclass(frozen=True)
class _Window:
    """Hidden frames start..stop, and the frames that context adds on both sides."""

    start: int
    stop: int


class SpeechFeatures:
    """The features of one speech, made window by window as the video proceeds."""

    WHOLE_FRAMES = 60 * HIDDEN_FPS
    """Up to a minute is encoded whole."""

    CORE_FRAMES = 8 * HIDDEN_FPS
    """Longer speech: windows begin at multiples of this, so that a block's features depend on its place alone."""

    TAIL_FRAMES = HIDDEN_FPS
    """A window reaches this far into the next one, so that a block lies in one window."""

    CONTEXT_FRAMES = 5 * HIDDEN_FPS
    """What a window hears before and behind itself."""

    def __init__(self, encoder: SpeechEncoder, speech_N: Tensor, *, device: torch.device | None = None) -> None:
        """`speech_N`: float32 at 16 kHz; `device`: where the encoder computes, by default where it is.

        Raises ValueError when the speech is too short for one hidden frame.
        """
        self._encoder = encoder
        self._device = device or encoder.device
        self._speech = normalise(speech_N)
        self._num_hidden = encoder.num_hidden_frames(len(speech_N))
        if self._num_hidden < 1:
            raise ValueError(f"speech of {len(speech_N)} samples is too short for the speech encoder")
        self.num_features = int(self._num_hidden / HIDDEN_FPS * FEATURE_FPS)
        self._window = _Window(0, 0)
        self._states = torch.empty(0)

    def frames(self, video_frames: range, fps: int = FPS) -> Tensor:
        """Returns features [1, 25, C, frames] of consecutive video frames, on the CPU; zeros past the end."""
        indices = [feature_index(frame, fps) for frame in video_frames]
        heard = [index for index in indices if index < self.num_features]
        if not heard:
            return self._silence(len(indices))
        states = self._states_for(heard[0], heard[-1])
        picked = _interpolate(
            states, torch.tensor(heard), self.num_features, self._num_hidden, first=self._window.start
        )
        padded = torch.nn.functional.pad(picked, (0, 0, 0, len(indices) - len(heard)))
        return padded.permute(0, 2, 1)[None]

    def _states_for(self, first_feature: int, last_feature: int) -> Tensor:
        scale = (self._num_hidden - 1) / max(self.num_features - 1, 1)
        window = self._window_at(int(first_feature * scale))
        assert int(last_feature * scale) + 1 < window.stop or window.stop == self._num_hidden
        if window != self._window:
            self._states = torch.empty(0)  # the old window goes before the new one comes
            self._states = self._encode(window)
            self._window = window
        return self._states

    def _window_at(self, hidden_frame: int) -> _Window:
        if self._num_hidden <= self.WHOLE_FRAMES:
            return _Window(0, self._num_hidden)
        start = hidden_frame // self.CORE_FRAMES * self.CORE_FRAMES
        return _Window(start, min(start + self.CORE_FRAMES + self.TAIL_FRAMES, self._num_hidden))

    def _encode(self, window: _Window) -> Tensor:
        begin = max(window.start - self.CONTEXT_FRAMES, 0)
        # All windows are of one length, the first hears more behind itself: memory stays what it was.
        length = self.CORE_FRAMES + self.TAIL_FRAMES + 2 * self.CONTEXT_FRAMES
        end = self._num_hidden if self._num_hidden <= self.WHOLE_FRAMES else min(begin + length, self._num_hidden)
        hop = self._encoder.hop_samples
        stop_sample = len(self._speech) if end == self._num_hidden else end * hop
        kept = slice(window.start - begin, window.stop - begin)
        states: Tensor = run_on(self._device, self._encoder, self._speech[begin * hop : stop_sample], keep=kept)
        return states

    def _silence(self, frames: int) -> Tensor:
        size = self._encoder.wav2vec2.config.hidden_size
        return torch.zeros(1, self._encoder.num_states, size, frames)


def to_transformers_names(published: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Renames the tensors of a wav2vec2 file to those of `SpeechEncoder`; the unused CTC head is left out.

    Older files name the halves of the positional convolution weight_g and weight_v.
    """
    norm = "pos_conv_embed.conv.parametrizations.weight.original"
    for published_name, tensor in published:
        if published_name.startswith("lm_head."):
            continue
        name = published_name if published_name.startswith("wav2vec2.") else f"wav2vec2.{published_name}"
        name = name.replace("pos_conv_embed.conv.weight_g", f"{norm}0")
        yield name.replace("pos_conv_embed.conv.weight_v", f"{norm}1"), tensor
