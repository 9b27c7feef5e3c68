"""The queue: jobs in the order of their promises, in sorted buckets that know how much delay they can bear."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from serve_app.jobs.supply import Supply

BUCKET_SIZE = 64
ROUNDING_S = 1e-6
"""What sums of thousands of seconds may be wrong by."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A job that waits: it needs `work_s` on one group, and stands at `finish_by`; of equals the first come first.

    `is_promised`: to finish by then was promised. Otherwise `finish_by` is its place in the order and no more.
    `expires_at`: it is dropped if it has not started by then.
    """

    job_id: str
    work_s: float
    finish_by: float
    arrival: int
    is_promised: bool = True
    expires_at: float = math.inf

    @property
    def key(self) -> tuple[float, int]:
        return self.finish_by, self.arrival


_KEY = attrgetter("key")


@dataclass
class _Bucket:
    """Neighbours in the queue. `room_s`: how much work may lie before the bucket, cached as of `drift`."""

    entries: list[Entry] = field(default_factory=list)
    work_s: float = 0.0
    room_s: float = math.nan
    drift: float = math.nan

    @property
    def last_key(self) -> tuple[float, int]:
        return self.entries[-1].key

    def changed(self) -> None:
        self.work_s = math.fsum(entry.work_s for entry in self.entries)
        self.room_s = self.drift = math.nan

    def bears(self, work_before_s: float, supply: Supply) -> bool:
        """Says whether all promises of the bucket hold with so much work before it.

        The cached room, less the drift since, is too small rather than too large: it is computed anew before a no.
        """
        if work_before_s <= self.room_s - (supply.drift - self.drift) + ROUNDING_S:
            return True
        self.room_s, self.drift = self._room(supply), supply.drift
        return work_before_s <= self.room_s + ROUNDING_S

    def last_in_trouble(self, work_before_s: float, supply: Supply) -> Entry | None:
        """Returns the last of the entries whose promise does not hold with so much work before the bucket."""
        before, found = work_before_s, None
        for entry in self.entries:
            if entry.is_promised and before > supply.by(entry.finish_by - entry.work_s) + ROUNDING_S:
                found = entry
            before += entry.work_s
        return found

    def _room(self, supply: Supply) -> float:
        before, room = 0.0, math.inf
        for entry in self.entries:
            if entry.is_promised:
                room = min(room, supply.by(entry.finish_by - entry.work_s) - before)
            before += entry.work_s
        return room


class Queue:
    """Waiting jobs, earliest promise first. What is asked of it costs a walk over buckets, not over jobs."""

    def __init__(self) -> None:
        self._buckets: list[_Bucket] = []
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return (entry for bucket in self._buckets for entry in bucket.entries)

    @property
    def first(self) -> Entry | None:
        return self._buckets[0].entries[0] if self._buckets else None

    @property
    def last(self) -> Entry | None:
        return self._buckets[-1].entries[-1] if self._buckets else None

    @property
    def work_s(self) -> float:
        return sum(bucket.work_s for bucket in self._buckets)

    def add(self, entry: Entry) -> None:
        assert entry.job_id not in self._entries, f"{entry.job_id} waits already"
        assert 0 < entry.work_s < math.inf, f"{entry.job_id} needs {entry.work_s} s"
        assert math.isfinite(entry.finish_by), f"{entry.job_id} is due at {entry.finish_by}"
        self._entries[entry.job_id] = entry
        if not self._buckets:
            self._buckets.append(_Bucket())
            index = 0
        else:
            index = min(self._bucket_of(entry.key), len(self._buckets) - 1)
        bucket = self._buckets[index]
        insort(bucket.entries, entry, key=_KEY)
        bucket.changed()
        if len(bucket.entries) > 2 * BUCKET_SIZE:
            self._split(index)

    def remove(self, job_id: str) -> Entry:
        entry = self._entries.pop(job_id)
        index = self._bucket_of(entry.key)
        bucket = self._buckets[index]
        del bucket.entries[bisect_left(bucket.entries, entry.key, key=_KEY)]
        bucket.changed()
        if len(bucket.entries) <= BUCKET_SIZE // 2:
            self._join(index)
        return entry

    def get(self, job_id: str) -> Entry:
        return self._entries[job_id]

    def ahead_of(self, entry: Entry) -> tuple[int, float]:
        """Returns how many jobs stand before an entry, and their work."""
        index = self._bucket_of(entry.key)
        inside = self._buckets[index].entries
        place = bisect_left(inside, entry.key, key=_KEY)
        jobs = sum(len(bucket.entries) for bucket in self._buckets[:index]) + place
        work = sum(bucket.work_s for bucket in self._buckets[:index])
        return jobs, work + sum(other.work_s for other in inside[:place])

    def due_by(self, moment: float) -> tuple[int, float]:
        """Returns how many jobs stand at `moment` or before, and their work."""
        jobs, work, key = 0, 0.0, (moment, math.inf)
        for bucket in self._buckets:
            if bucket.last_key > key:
                inside = bucket.entries[: bisect_right(bucket.entries, key, key=_KEY)]
                return jobs + len(inside), work + sum(entry.work_s for entry in inside)
            jobs += len(bucket.entries)
            work += bucket.work_s
        return jobs, work

    def last_in_the_way(self, work_s: float, *, behind: float, supply: Supply) -> Entry | None:
        """Returns the last job due after `behind` whose promise would not hold with `work_s` more before it."""
        before, key = self.work_s, (behind, math.inf)
        for bucket in reversed(self._buckets):
            if bucket.last_key <= key:
                return None
            before -= bucket.work_s
            if not bucket.bears(before + work_s, supply):
                found = bucket.last_in_trouble(before + work_s, supply)
                if found is not None:
                    return found if found.key > key else None
        return None

    def forget_supply(self) -> None:
        """Makes every bucket look anew: a group is gone, of which `Supply.drift` tells nothing."""
        for bucket in self._buckets:
            bucket.room_s = bucket.drift = math.nan

    def _bucket_of(self, key: tuple[float, int]) -> int:
        """Returns the index of the first bucket that does not end before `key`."""
        return bisect_left(self._buckets, key, key=attrgetter("last_key"))

    def _split(self, index: int) -> None:
        bucket = self._buckets[index]
        half = len(bucket.entries) // 2
        behind = _Bucket(bucket.entries[half:])
        del bucket.entries[half:]
        self._buckets.insert(index + 1, behind)
        bucket.changed()
        behind.changed()

    def _join(self, index: int) -> None:
        """Puts a bucket together with the next (the last: with the one before), so that there are never many."""
        index = max(0, min(index, len(self._buckets) - 2))
        first, *others = self._buckets[index : index + 2]
        for other in others:
            first.entries += other.entries
            first.changed()
        del self._buckets[index + 1 : index + 2]
        if not first.entries:
            del self._buckets[index]
        elif len(first.entries) > 2 * BUCKET_SIZE:
            self._split(index)
