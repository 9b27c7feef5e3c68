"""EventWatch: one look at the job store, many times a second, for everybody in this process who waits for an event."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from serve_app.errors import AvatarError

_LOOK_EVERY_S = 0.002
"""A viewer gets a block so much later, half of it on the average; a look at the mark costs microseconds."""
_ASK_EVERY_S = 0.1
"""The store is asked at least so often, also where its mark says that nothing changed."""

LastEvents = Callable[[Collection[str]], Mapping[str, int]]
"""Returns the number of the newest event of each of these jobs; jobs that are not there are left out."""

Mark = Callable[[], object]
"""Returns at once what differs once the store has changed."""


class EventWatch:
    """Looks only while somebody waits, and for all of them at once: thousands of readers cost one query a change."""

    def __init__(self, last_events: LastEvents, mark: Mark) -> None:
        self._last_events, self._mark = last_events, mark
        self._watched: Counter[str] = Counter()
        self._watched_then: frozenset[str] = frozenset()
        self._newest: Mapping[str, int] = {}
        self._looked = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, job_id: str, *, after: int, timeout_s: float) -> bool:
        """Waits until a job has an event above `after`, or is gone; says whether that came in time."""
        self._watched[job_id] += 1
        try:
            await asyncio.wait_for(self._seen(job_id, after), timeout_s)
        except TimeoutError:
            return False
        finally:
            self._watched[job_id] -= 1
            if not self._watched[job_id]:
                del self._watched[job_id]
        return True

    async def _seen(self, job_id: str, after: int) -> None:
        while True:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look_while_watched())
            looked = self._looked
            await looked.wait()
            if job_id in self._watched_then and self._newest.get(job_id, after + 1) > after:
                return

    async def _look_while_watched(self) -> None:
        while self._watched:
            watched, mark = frozenset(self._watched), self._mark()
            try:
                newest: Mapping[str, int] = await asyncio.to_thread(self._last_events, watched)
            except AvatarError:  # the store is busy or restarts: the next look will tell
                newest = dict.fromkeys(watched, 0)
            self._watched_then, self._newest = watched, newest
            looked, self._looked = self._looked, asyncio.Event()
            looked.set()
            await self._change(mark)

    async def _change(self, mark: object) -> None:
        """Waits until there is reason to ask the store: it has changed, somebody waits for another job, or in doubt."""
        ask_at = asyncio.get_running_loop().time() + _ASK_EVERY_S
        while asyncio.get_running_loop().time() < ask_at:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self._mark() != mark or not self._watched.keys() <= self._watched_then:
                return
