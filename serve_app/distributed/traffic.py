"""Traffic: how many bytes a rank sends to others, by what they are for."""

from __future__ import annotations

from collections import Counter


class Traffic:
    """Counts the bytes that this rank sends; receivers count nothing, so sums over ranks count each byte once."""

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()

    def add(self, purpose: str, num_bytes: int) -> None:
        self._bytes[purpose] += num_bytes

    def by_purpose(self) -> dict[str, int]:
        return dict(self._bytes)
