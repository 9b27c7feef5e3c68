"""The environment of this process, changed for a while: Ray takes some settings from nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def changed_environment(settings: Mapping[str, str], *, cleared: tuple[str, ...] = ()) -> Iterator[None]:
    """Sets some variables and clears others; at the end all of them are as before."""
    before = {name: os.environ.pop(name, None) for name in (*settings, *cleared)}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})
