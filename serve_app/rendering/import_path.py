"""Imports by path: how the control plane reaches code that needs torch without importing it."""

from __future__ import annotations

from typing import Any

from ray_cluster import program
from serve_app.errors import AvatarError

MODEL_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


def import_object(path: str) -> Any:  # noqa: ANN401  (whoever asks knows what is there)
    """Returns the object at "package.module:name"; raises AvatarError where the model's packages are missing."""
    try:
        return program.import_object(path)
    except ModuleNotFoundError as error:
        if error.name not in MODEL_PACKAGES:
            raise
        raise AvatarError(
            f"{error.name} is not installed",
            remedy='install the model\'s packages: pip install "live-avatar-serve[model]"',
        ) from error
