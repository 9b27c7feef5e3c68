"""GPU memory of every rank: parts that stay, phases that come on top one at a time.

    needed = parts + margin * the worst phase          (bytes; `feasibility` adds the reserve and compares with a card)

Exact, never fitted: weights, KV, sink, text keys and values, the decoder's stream. Derived from the code of `model`
and held to its live storages by tests (within 3 %): the phases. Calibrated: what CUDA and the communicators take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serve_app.planning.calibration import Calibration
from serve_app.planning.decoding import decode_bytes, encode_bytes, stream_bytes
from serve_app.planning.geometry import LATENT_FRAMES_PER_BLOCK, Size
from serve_app.planning.layout import ParallelLayout, RankPlace, Role, share
from serve_app.planning.network import ELEMENT_BYTES, PUBLISHED, DType, ModelDims
from serve_app.planning.vae_network import VAEDims
from serve_app.planning.workload import MOTION_LATENTS, WHOLE_SPEECH_SECONDS, Workload

_FLOAT32 = 4


@dataclass(frozen=True)
class Part:
    """Bytes under the name that refusals and tables give them. A part of a video is there only while one is made."""

    name: str
    num_bytes: int
    is_of_video: bool = False


@dataclass(frozen=True)
class Phase:
    """The most that a stretch of work holds on top of the parts; what belongs to the video may not be there yet.

    `exact_bytes` are weights that come and go, which no margin multiplies.
    """

    name: str
    num_bytes: int
    exact_bytes: int = 0
    is_within_video: bool = True

    def with_margin(self, margin: float) -> int:
        return self.exact_bytes + round(margin * self.num_bytes)


@dataclass(frozen=True)
class RankMemory:
    """What one rank holds."""

    place: RankPlace
    parts: tuple[Part, ...]
    phases: tuple[Phase, ...]

    def parts_during(self, phase: Phase) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if phase.is_within_video or not part.is_of_video)

    def needed_during(self, phase: Phase, *, margin: float) -> int:
        return sum(part.num_bytes for part in self.parts_during(phase)) + phase.with_margin(margin)

    def worst_phase(self, *, margin: float) -> Phase:
        return max(self.phases, key=lambda phase: self.needed_during(phase, margin=margin))

    def needed(self, *, margin: float) -> int:
        """Bytes at the worst moment; `margin` multiplies what is not exact."""
        return self.needed_during(self.worst_phase(margin=margin), margin=margin)


def estimate(
    work: Workload,
    layout: ParallelLayout,
    *,
    dtype: DType,
    calibration: Calibration,
    dims: ModelDims = PUBLISHED,
) -> tuple[RankMemory, ...]:
    """Returns the memory of every rank of the layout, in the order of the ranks."""
    return tuple(estimates(work, layout, dtype=dtype, calibration=calibration, dims=dims))


def estimates(
    work: Workload,
    layout: ParallelLayout,
    *,
    dtype: DType,
    calibration: Calibration,
    dims: ModelDims = PUBLISHED,
) -> Iterator[RankMemory]:
    """Yields what `estimate` returns, rank by rank, for who may stop at the first that is too much."""
    model = _Model(work, layout, dims, ELEMENT_BYTES[dtype])
    return (_rank_memory(model, place, calibration) for place in layout.places())


@dataclass(frozen=True)
class _Model:
    """What all ranks have in common."""

    work: Workload
    layout: ParallelLayout
    dims: ModelDims
    element: int

    def num_steps(self, place: RankPlace) -> int:
        return len(self.layout.steps_of(place.stage, self.work.sample_steps))


def _rank_memory(model: _Model, place: RankPlace, calibration: Calibration) -> RankMemory:
    conditions, decodes = place.rank == 0, place.rank in model.layout.decoding_ranks
    # Weights are loaded before the steps of a video are known: a stage that will own none has them too.
    denoises = place.role is Role.STAGE
    parts = [Part("CUDA context", calibration.context_bytes)]
    if model.layout.world_size > 1:
        parts.append(Part("communicators", calibration.communicator_bytes))
    if denoises:
        parts += _transformer_weights(model)
    if conditions or decodes:
        parts.append(Part("VAE weights", model.dims.vae.parameters * model.element))
    if denoises:
        parts += _caches(model, model.num_steps(place))
    if decodes:
        parts.append(Part("decoder stream", _of_strip(model, place, stream_bytes), is_of_video=True))
    return RankMemory(place, tuple(parts), tuple(_phases(model, place, denoises=denoises, decodes=decodes)))


def _transformer_weights(model: _Model) -> list[Part]:
    dit, element, layout = model.dims.dit, model.element, model.layout
    if layout.offload == "layers":
        return [
            Part("transformer weights", dit.resident_parameters * element),
            Part("streamed layers", 2 * max(dit.units) * element),  # two slots that take turns
        ]
    if layout.weight_shards > 1:
        shards = sum(dit.unit_shards(layout.weight_shards))
        return [Part("transformer weights", (shards + dit.resident_parameters) * element)]
    return [Part("transformer weights", dit.parameters * element)]


def _caches(model: _Model, num_steps: int) -> list[Part]:
    """Keys and values: per owned step of the window, once of the sink (local heads), once of the text (all heads)."""
    dit, work, element = model.dims.dit, model.work, model.element
    per_token = 2 * dit.dim * dit.num_layers * element // model.layout.ulysses
    return [
        Part("text keys and values", 2 * dit.num_layers * dit.text_len * dit.dim * element, is_of_video=True),
        Part("KV cache", num_steps * work.window_tokens * per_token, is_of_video=True),
        Part("sink", work.size.cond_tokens * per_token, is_of_video=True),
        Part("conditions", _condition_bytes(model, num_steps), is_of_video=True),
    ]


def _condition_bytes(model: _Model, num_steps: int) -> int:
    """Text context, motion latents, time embeddings, rotary tables and the audio of one block."""
    dit, work, element = model.dims.dit, model.work, model.element
    positions = work.size.latent_width * work.size.latent_height
    text = dit.text_len * dit.text_dim * element
    motion = dit.in_dim * MOTION_LATENTS * positions * _FLOAT32
    times = num_steps * 7 * dit.dim * _FLOAT32
    rotary_pairs = dit.dim // dit.num_heads  # a cosine and a sine for every second channel
    tables = (work.block_tokens + 2 * work.size.cond_tokens) * rotary_pairs * _FLOAT32
    audio_tokens = LATENT_FRAMES_PER_BLOCK * (dit.num_audio_token + 1)
    audio = dit.num_injectors * 2 * dit.dim * (audio_tokens * element + LATENT_FRAMES_PER_BLOCK * _FLOAT32)
    return text + motion + times + tables + audio


def _phases(model: _Model, place: RankPlace, *, denoises: bool, decodes: bool) -> list[Phase]:
    phases = []
    if place.rank == 0:
        phases += [
            Phase("text encoder", _text_bytes(model), _text_weight_bytes(model), is_within_video=False),
            Phase(
                "encode portrait", encode_bytes(model.dims.vae, model.work.size, model.element), is_within_video=False
            ),
            # Float32 whatever the rest is, as it was trained; the weights come every time from the host.
            Phase(
                "encode speech",
                _speech_bytes(model),
                model.dims.speech.parameters * _FLOAT32,
                is_within_video=model.work.speech_seconds > WHOLE_SPEECH_SECONDS,  # the first window comes before
            ),
        ]
    if denoises:
        working = denoise_bytes(model.work, model.layout, model.dims, model.element)
        phases.append(Phase("denoise", working, _gathered_bytes(model)))
    if decodes:
        phases.append(Phase("decode", _of_strip(model, place, decode_bytes)))
    return phases


def denoise_bytes(work: Workload, layout: ParallelLayout, dims: ModelDims, element: int) -> int:
    """Returns the working memory of one call.

    Its worst moment is in self-attention, when the query is rotated: per query token and channel the float32 residual,
    and normed, key, value and query; the rotation's float32 copy and four half-width products; and, per key token,
    keys and values gathered from sink and window (`model.kv_cache.BlockMemory.extend`, `model.rope.RopeTable.rotate`).
    Ulysses divides this by tokens outside the attention and by heads inside; it holds query, key and value twice more,
    before and after they are traded, and the residual of all tokens (`distributed.ulysses`).
    """
    ranks, dim = layout.ulysses, dims.dit.dim
    own_tokens = LATENT_FRAMES_PER_BLOCK * -(-work.size.tokens_per_frame // ranks)
    key_tokens = work.window_tokens + work.size.cond_tokens
    rotation = 4 * _FLOAT32 // 2 + (_FLOAT32 if element != _FLOAT32 else 0)
    own = own_tokens * dim * (_FLOAT32 + (10 if ranks > 1 else 4) * element)
    attended = (work.block_tokens * rotation + key_tokens * 2 * element) * dim // ranks
    whole_residual = work.block_tokens * dim * _FLOAT32 if ranks > 1 else 0
    return own + attended + whole_residual


def _gathered_bytes(model: _Model) -> int:
    """Returns what sharded weights take whole: a layer that computes, the next, gathered meanwhile, and an injector.

    FSDP2 keeps the buffer that gathered the injector until the next gathering (`distributed.weight_sharding`).
    """
    dit = model.dims.dit
    if model.layout.weight_shards == 1:
        return 0
    return (2 * dit.units[0] + dit.units[dit.num_layers]) * model.element


def _text_weight_bytes(model: _Model) -> int:
    """The text encoder lives on the CPU and visits the GPU for one prompt (`engine.conditioning`)."""
    return model.dims.text.parameters * model.element


def _text_bytes(model: _Model) -> int:
    """Attention scores, bias and softmax of the longest prompt, and some activations."""
    text, length = model.dims.text, model.dims.dit.text_len
    return (3 * text.num_heads * length**2 + 6 * length * text.dim) * model.element


def _speech_bytes(model: _Model) -> int:
    """The waveform, and input and output of the norm behind the first convolution; or the positional weight's norm."""
    speech, samples = model.dims.speech, round(model.work.encoded_speech_seconds * 16_000)
    first = 2 * speech.conv_dims[0] * (samples // speech.strides[0])
    return max(first + samples, speech.position_parameters) * _FLOAT32


def _of_strip(model: _Model, place: RankPlace, formula: Callable[[VAEDims, Size, int, float], int]) -> int:
    """Returns a decoding formula for the strip of the picture that this rank decodes."""
    ranks = model.layout.decoding_ranks
    columns = model.work.size.latent_width
    strip = len(share(columns, len(ranks), ranks.index(place.rank))) / columns
    return formula(model.dims.vae, model.work.size, model.element, strip)
