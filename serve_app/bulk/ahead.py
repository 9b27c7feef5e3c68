"""Working ahead: what takes its time is done for several at once, and its results come in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

_AHEAD = 4
"""So many items per thread may be worked on before the result of the first is asked for."""


def in_order(work: Callable[[Item], Value], items: Iterable[Item], *, num_threads: int) -> Iterator[Value]:
    """Yields what `work` returns for each item, in order; several are worked on at once, and few are held.

    The items are drawn by whoever asks for the results; both raise there what they raise.
    """
    with ThreadPoolExecutor(num_threads, thread_name_prefix="ahead") as pool:
        waiting: deque[Future[Value]] = deque()
        source = iter(items)
        while True:
            for item in itertools.islice(source, num_threads * _AHEAD - len(waiting)):
                waiting.append(pool.submit(work, item))
            if not waiting:
                return
            yield waiting.popleft().result()
