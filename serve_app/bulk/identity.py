"""Identity: rows of the same key give the same video, so that what is done is never done again.

key = sha256(spec + digests of the inputs + model + how videos are made)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from serve_app.bulk.row import Document
from serve_app.errors import CheckpointError
from serve_app.planning.network import TINY_CHECKPOINT
from serve_app.rendering.pipeline import PIPELINE_VERSION
from serve_app.schemas.config import VideoEncoding
from serve_app.schemas.render import RenderSpec

_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
_DESCRIPTIONS = (".json", ".txt", ".model")
_WHOLE_BYTES = 2 * 2**30
"""Files up to here, the LoRA among them, are read whole; of larger ones samples tell whether they changed."""
_SAMPLES, _SAMPLE_BYTES = 256, 64 * 1024


def body_key(spec: RenderSpec, *, image_sha256: str, audio_sha256: str, encoding: VideoEncoding) -> str:
    """Returns the digest of a row but for the model: where its inputs are does not count, what is in them does."""
    wanted = {
        **spec.model_dump(mode="json"),
        "image": image_sha256,
        "audio": audio_sha256,
        "encoding": encoding.model_dump(mode="json"),
        "pipeline": PIPELINE_VERSION,
    }
    return _digest_of(wanted)


def row_key(body: str, *, model: str) -> str:
    """Returns the key of a row that this model renders."""
    return _digest_of({"body": body, "model": model})


def checkpoint_digest(checkpoint: str) -> str:
    """Returns the digest of a checkpoint folder, its LoRA included; some seconds for the published one.

    Small files are read whole. Of the large ones it takes the length, head, end and evenly spread samples: weights
    that were trained or merged anew differ everywhere. Raises CheckpointError where there is no such folder.
    """
    if checkpoint == TINY_CHECKPOINT:
        return TINY_CHECKPOINT
    root = Path(checkpoint)
    files = sorted(path for path in _below(root, seen=set()) if path.suffix in (*_WEIGHTS, *_DESCRIPTIONS))
    if not files:
        raise CheckpointError(
            f'"{checkpoint}" holds no checkpoint', remedy="name a folder in the published layout", param="checkpoint"
        )
    digest = hashlib.sha256()
    for path in files:
        try:
            digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
            for piece in _pieces(path):
                digest.update(piece)
        except OSError as error:
            raise CheckpointError(
                f'"{path}" cannot be read: {error.strerror or error}',
                remedy="see to the right to read it, and to the disk",
                param="checkpoint",
            ) from error
    return digest.hexdigest()


def _below(folder: Path, *, seen: set[Path]) -> Iterator[Path]:
    """Yields the files below a folder, also where links lead: parts of a checkpoint often stand elsewhere."""
    place = folder.resolve()
    if place in seen or not folder.is_dir():
        return
    seen.add(place)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _below(path, seen=seen)
        elif path.is_file():
            yield path


def _pieces(path: Path) -> Iterator[bytes]:
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        if num_bytes <= _WHOLE_BYTES:
            while piece := file.read(1 << 20):
                yield piece
            return
        for index in range(_SAMPLES):
            file.seek((num_bytes - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
            yield file.read(_SAMPLE_BYTES)


def _digest_of(document: Document) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
