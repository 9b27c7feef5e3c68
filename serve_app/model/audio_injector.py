"""Audio injection: after chosen layers, each latent frame attends to its own audio tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from serve_app.model.config import DiTConfig
from serve_app.model.layers import CrossAttention, KeyValues, modulated_norm

_ADAIN_EPS = 1e-5


@dataclass(frozen=True, eq=False)
class InjectorConditions:
    """What one injector needs of a block: per speaker A and latent frame F.

    Keys and values [A * F, tokens, H, D]; shift and scale [A, F, 1, dim].
    """

    audio: KeyValues
    shift: Tensor
    scale: Tensor


@dataclass(frozen=True, eq=False)
class AudioConditions:
    """The audio of one block, made once and used by all its denoising steps.

    `routing` [A, L, 1] says how much each token listens to each speaker; None: one speaker, all tokens.
    """

    injectors: tuple[InjectorConditions, ...]
    routing: Tensor | None

    @property
    def num_frames(self) -> int:
        """Latent frames that these conditions belong to."""
        return self.injectors[0].shift.shape[1]


class AudioInjector(nn.Module):
    """One attention and one AdaIN norm for each layer of `audio_inject_layers`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.index_of_layer = {layer: index for index, layer in enumerate(config.audio_inject_layers)}
        self.injector = nn.ModuleList(
            CrossAttention(config.dim, config.num_heads, config.eps) for _ in config.audio_inject_layers
        )
        self.injector_adain_layers = nn.ModuleList(_AdaIN(config.dim) for _ in config.audio_inject_layers)

    def conditions(self, tokens_AFNC: Tensor, overall_AFC: Tensor, routing: Tensor | None) -> AudioConditions:
        """Prepares a block's audio; tokens [A, F, N, dim], overall [A, F, dim], routing [A, L, 1] or None."""
        injectors = []
        for index in range(len(self.injector)):
            attention, adain = self._pair(index)
            shift, scale = adain(overall_AFC)
            injectors.append(InjectorConditions(attention.key_values(tokens_AFNC.flatten(0, 1)), shift, scale))
        return AudioConditions(tuple(injectors), routing)

    def forward(self, x_BLC: Tensor, layer: int, audio: AudioConditions) -> Tensor:
        """Returns the residual of `layer` [1, L, dim]; x [1, L, dim] in token order (frame, row, column)."""
        index = self.index_of_layer[layer]
        (attention, _), conditions = self._pair(index), audio.injectors[index]
        speakers, frames = conditions.shift.shape[:2]
        x_AFSC = x_BLC.unflatten(1, (frames, -1)).expand(speakers, -1, -1, -1)
        normed = modulated_norm(x_AFSC, conditions.shift, conditions.scale, _ADAIN_EPS)
        out = attention(normed.to(attention.q.weight.dtype).flatten(0, 1), conditions.audio)
        residual_ALC = out.unflatten(0, (speakers, frames)).flatten(1, 2)
        if audio.routing is not None:
            residual_ALC = residual_ALC * audio.routing
        return residual_ALC.sum(dim=0, keepdim=True)

    def _pair(self, index: int) -> tuple[CrossAttention, _AdaIN]:
        return cast(CrossAttention, self.injector[index]), cast(_AdaIN, self.injector_adain_layers[index])


class _AdaIN(nn.Module):
    """Shift and scale of a layer norm from the frame's overall audio embedding."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, overall_AFC: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.linear(functional.silu(overall_AFC)).float().unsqueeze(2).chunk(2, dim=-1)
        return shift, scale
