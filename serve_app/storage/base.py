"""What the render pipeline asks of a place for videos."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class VideoSink(Protocol):
    """Takes one video piece by piece; it exists for others only once it is committed."""

    def append(self, fragment: bytes) -> None:
        """Adds bytes to the end. Raises OutputError."""
        ...

    def commit(self) -> str:
        """Makes the video visible, whole, and returns where it is. Raises OutputError."""
        ...


OpenSink = AbstractContextManager[VideoSink]
"""Leaving it without a commit leaves nothing behind."""
