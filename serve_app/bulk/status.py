"""What a job tells those who ask from outside: how far it is, and what became of it."""

from __future__ import annotations

import json
import shlex

from serve_app.bulk.lock import RUN, has_lost_driver
from serve_app.bulk.output import open_output
from serve_app.bulk.reports import PROGRESS, SUMMARY
from serve_app.bulk.row import Document
from serve_app.errors import InputNotFoundError
from serve_app.schemas.bulk import BulkLimits
from serve_app.storage.base import Folder

GONE = "gone"
"""The state of a job whose driver was killed: it cannot tell so itself."""


def status_of(out: str, *, stale_after_s: float = BulkLimits().stale_after_s) -> Document:
    """Returns what progress.json tells; its state is GONE where nobody works on a job that has not ended.

    Of a driver on another machine that takes up to `stale_after_s`: its heartbeat is watched. Raises
    InputNotFoundError.
    """
    folder = open_output(out)
    told = _read(folder, PROGRESS)
    if told is None:
        raise _no_job(folder)
    return {**told, "state": GONE} if has_lost_driver(folder, stale_after_s=stale_after_s) else told


def report_of(out: str) -> Document:
    """Returns what summary.json tells; raises InputNotFoundError where the last run has none."""
    folder = open_output(out)
    told = _read(folder, SUMMARY)
    if told is not None:
        return told
    if folder.read(RUN) is None:
        raise _no_job(folder)
    raise InputNotFoundError(
        f'the last run in "{folder.uri()}" has not come to its end: it works, was killed, or could not go on',
        remedy=f"see live-avatar bulk status {shlex.quote(out)}",
        param="out",
    )


def _read(folder: Folder, name: str) -> Document | None:
    stored = folder.read(name)
    told: Document | None = None if stored is None else json.loads(stored.content)
    return told


def _no_job(folder: Folder) -> InputNotFoundError:
    return InputNotFoundError(f'no job has begun in "{folder.uri()}"', remedy="name the --out of a job", param="out")
