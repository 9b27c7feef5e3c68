"""Folders that fail when a test says so, and one that calls itself a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serve_app.errors import StorageError
from serve_app.storage.local_folder import LocalFolder


class FrailFolder(LocalFolder):
    """Fails at whatever is in `broken`: names of its methods."""

    broken: frozenset[str] = frozenset()

    def __getattribute__(self, name: str) -> Any:
        if name in super().__getattribute__("broken"):
            raise StorageError(f"the disk is away: {name}", remedy="bring it back")
        return super().__getattribute__(name)


class Bucket(FrailFolder):
    """A folder that is reached like a bucket: what goes there comes from a file of this machine."""

    def uri(self, name: str = "") -> str:
        return f"s3://bucket/{name}".removesuffix("/")


def names_in(folder: Path) -> list[str]:
    """Returns the files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
