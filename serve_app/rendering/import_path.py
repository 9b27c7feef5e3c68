"""Imports by path: how the control plane reaches code that needs torch or Ray without importing it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ray_cluster import program
from serve_app.errors import AvatarError

EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "model": ("torch", "transformers", "tokenizers", "safetensors"),
        "cluster": ("ray",),
        "s3": ("boto3", "botocore", "s3transfer"),
        "bulk": ("aiohttp", "requests", "pandas", "pyarrow"),
        "service": ("fastapi", "starlette", "python_multipart"),
    }
)
"""What is imported, by the extra that installs it."""


def import_object(path: str) -> Any:  # noqa: ANN401  (whoever asks knows what is there)
    """Returns the object at "package.module:name"; raises AvatarError where a package of an extra is missing."""
    try:
        return program.import_object(path)
    except ModuleNotFoundError as error:
        for extra, packages in EXTRAS.items():
            if error.name in packages:
                raise _not_installed(error.name, extra) from error
        raise


def check_model_packages() -> None:
    """Raises AvatarError where a package of the model is missing; imports none of them."""
    for package in EXTRAS["model"]:
        if importlib.util.find_spec(package) is None:
            raise _not_installed(package, "model")


def _not_installed(package: str, extra: str) -> AvatarError:
    return AvatarError(
        f"{package} is not installed",
        remedy=f'install the {extra}\'s packages: pip install "live-avatar-serve[{extra}]"',
    )
