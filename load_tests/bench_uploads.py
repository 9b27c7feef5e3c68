"""Times GET /v1/files where it costs: milliseconds of CPU for a page of uploads, beside how many there are.

python load_tests/bench_uploads.py [NUMBER OF UPLOADS ...]
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from serve_app.storage.files import FilePage, FileStore, ImageFacts

DEFAULT_NUMBERS = (100, 5_000)
PAGE, REPEATS = 100, 9
FACTS = ImageFacts(width=640, height=480)


def main(numbers: list[int]) -> int:
    """Prints one line per number and kind of page."""
    for number in numbers or DEFAULT_NUMBERS:
        with tempfile.TemporaryDirectory() as folder:
            store = FileStore(Path(folder))
            # Every hundredth is of the other purpose: pages of that one are the most that can be asked for.
            ids = [_add(store, purpose="user_data" if index % 100 else "vision") for index in range(number)]
            pages = {
                "the newest": partial(store.page, limit=PAGE),
                "in the middle": partial(store.page, limit=PAGE, after=ids[number // 2]),
                "of a rare purpose": partial(store.page, limit=PAGE, purpose="vision"),
            }
            for name, page in pages.items():
                sys.stdout.write(f"{number} uploads, page {name}: {_milliseconds(page):.1f} ms\n")
    return 0


def _add(store: FileStore, *, purpose: str) -> str:
    return store.add(io.BytesIO(b"a picture"), inspect=lambda *_: FACTS, purpose=purpose, filename="me.png").id


def _milliseconds(page: Callable[[], FilePage]) -> float:
    """Returns the median of several calls."""
    seconds = []
    for _ in range(REPEATS):
        started = time.process_time()
        page()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds) * 1e3


if __name__ == "__main__":
    sys.exit(main([int(text) for text in sys.argv[1:]]))
