"""All networks of a checkpoint folder: those of every rank, and the encoders of text and speech."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import Wav2Vec2Config

from serve_app.model import speech_encoder, text_encoder
from serve_app.model.checkpoint import Checkpoint, Network, described, on_meta
from serve_app.model.config import TextEncoderConfig
from serve_app.model.speech_encoder import SpeechEncoder
from serve_app.model.tensor_files import read_json, read_tensors, require
from serve_app.model.text_encoder import PromptTokenizer, TextEncoder

TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_FILE = "google/umt5-xxl/tokenizer.json"
SPEECH_FOLDER = "wav2vec2-large-xlsr-53-english"
SPEECH_FILE = "model.safetensors"
_OLD_SPEECH_FILE = "pytorch_model.bin"


class FullCheckpoint(Checkpoint):
    """One checkpoint folder with everything in it."""

    def networks(self) -> dict[str, Callable[[], Network[Any]]]:
        """Returns what finds each network of the folder, by role."""
        return {
            "dit": self.dit,
            "text_encoder": self.text_encoder,
            "speech_encoder": self.speech_encoder,
            "vae": self.vae,
        }

    def text_encoder(self) -> Network[TextEncoder]:
        path = self.base / TEXT_ENCODER_FILE
        config = TextEncoderConfig.from_json(described(path))
        tensors = text_encoder.to_transformers_names(read_tensors(path))
        return Network(path, on_meta(lambda: TextEncoder(config)), tensors, text_encoder.published_name)

    def speech_encoder(self) -> Network[SpeechEncoder]:
        folder = self.base / SPEECH_FOLDER
        current, old = folder / SPEECH_FILE, folder / _OLD_SPEECH_FILE
        path = old if old.is_file() and not current.is_file() else current
        config = Wav2Vec2Config.from_dict(read_json(folder / "config.json"))
        tensors = speech_encoder.to_transformers_names(read_tensors(path))
        return Network(current, on_meta(lambda: SpeechEncoder(config)), tensors)

    def tokenizer(self, text_len: int) -> PromptTokenizer:
        path = self.base / TOKENIZER_FILE
        require(path)
        return PromptTokenizer(path, text_len)
