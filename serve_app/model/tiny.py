"""The built-in tiny model: a checkpoint folder in the published layout, with random weights.

It is generated on first use, always the same, so that everything from loading to the video can be run and
tested on any machine. It shows the machinery; it has learned nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from serve_app.errors import OutputError
from serve_app.model.config import DiTConfig, ModelSizes, TextEncoderConfig, VAEConfig

REVISION = 1
"""Part of the cache folder's name: raise it when the generated weights change."""


TINY = ModelSizes(
    name="tiny",
    dit=DiTConfig(
        dim=256,
        ffn_dim=1024,
        freq_dim=128,
        num_heads=4,
        num_layers=6,
        audio_dim=64,
        audio_inject_layers=(0, 2, 4),
        text_len=512,
        text_dim=128,
    ),
    vae=VAEConfig(
        dim=16,
        decoder_dim=24,
        dim_mult=(1, 2, 4),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        patch_size=2,
    ),
    text=TextEncoderConfig(vocab=1024, dim=128, dim_attn=128, dim_ffn=256, num_heads=4, num_layers=2),
    speech={
        "hidden_size": 64,
        "num_hidden_layers": 24,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "conv_dim": [32] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    },
)


def tiny_checkpoint(cache_dir: Path) -> Path:
    """Returns the folder of the tiny model below `cache_dir`, generating it on first use.

    Raises OutputError when the cache cannot be written.
    """
    folder = cache_dir / f"{TINY.name}-{REVISION}"
    if folder.is_dir():
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _generate_beside(folder)
    except OSError as error:
        raise OutputError(
            f'the built-in model cannot be kept in "{cache_dir}": {error.strerror or error}',
            remedy="set XDG_CACHE_HOME to a folder that is writable and has 40 MB of space",
        ) from error
    return folder


def _generate_beside(folder: Path) -> None:
    """Generates under another name and moves at the end: a crash or a second process leaves no half folder."""
    from serve_app.model.random_checkpoint import write_checkpoint  # seconds to import, and needed once

    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_checkpoint(unfinished, TINY)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was first: its folder is the same
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
