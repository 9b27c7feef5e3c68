"""The tables of the job store, and how their file is opened: SQLite in WAL mode, every change in one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from serve_app.errors import InvalidRequestError
from serve_app.jobs.errors import StoreError
from serve_app.jobs.job import JobState

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 10.0
MAX_DOCUMENT_BYTES = 256 * 1024
MAX_DOCUMENT_DEPTH = 50

metadata = MetaData()

dispatcher = Table(
    "dispatcher",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True),
    Column("schema_version", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
)
"""One row: the epoch of the Dispatcher that may write."""

_STATES = ", ".join(f"'{state}'" for state in JobState)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("state", String(16), CheckConstraint(f"state IN ({_STATES})"), nullable=False),
    Column("priority", String(16), nullable=False),
    Column("spec", Text, nullable=False),
    Column("inputs", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("quote", Text, nullable=False),
    Column("layout", String(200), nullable=False),
    Column("predicted_s", Float, nullable=False),
    Column("promised_at", Float),
    Column("expires_at", Float),
    Column("created_at", Float, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("groups_brought_down", Integer, nullable=False),
    Column("group", String(200)),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("blocks_done", Integer, nullable=False),
    Column("num_blocks", Integer, nullable=False),
    Column("progress", Integer, nullable=False),
    Column("is_cancel_requested", Integer, nullable=False),
    Column("location", Text),
    Column("result", Text, nullable=False),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("idempotency_key", String(255), unique=True),
    Column("request_digest", String(64)),
    Column("last_event", Integer, nullable=False, default=0),
    Index("jobs_by_state", "state", "number"),
    sqlite_autoincrement=True,
)
"""One row per job; `number` is the order of admission and never used twice."""

events = Table(
    "events",
    metadata,
    Column("job_number", Integer, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("at", Float, nullable=False),
    Column("content", Text, nullable=False),
)
"""What happened to each job, numbered from 1."""


def open_database(path: Path) -> Engine:
    """Opens the store's file, making it when it is not there; raises StoreError when it is no store of this version."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with engine.execution_options(is_write=True).begin() as connection:
            _make_or_check(connection, path)
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        engine.dispose()
        raise StoreError(
            f'the job store "{path}" cannot be opened: {error.args[0] if error.args else error}',
            remedy="name a file in a folder that is writable",
        ) from error
    except StoreError:
        engine.dispose()
        raise
    return engine


def to_text(document: Mapping[str, Any], *, name: str) -> str:
    """Returns a JSON object as it is stored; raises InvalidRequestError when it is too large or not JSON."""
    _check_depth(document, name)
    try:
        text = json.dumps(dict(document), allow_nan=False, separators=(",", ":"), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{name} is not JSON: {error}", remedy=f"correct {name}", param=name) from error
    if len(text) > MAX_DOCUMENT_BYTES:
        raise InvalidRequestError(
            f"{name} takes {len(text)} bytes as JSON; at most {MAX_DOCUMENT_BYTES} are stored",
            remedy=f"make {name} smaller; images and sounds are uploaded as files",
            param=name,
        )
    return text


def _check_depth(document: Mapping[str, Any], name: str) -> None:
    """Raises InvalidRequestError for a document that a reader with less stack than the writer could not read again."""
    level: list[object] = [document]
    for _ in range(MAX_DOCUMENT_DEPTH):
        level = [inner for outer in level for inner in _parts(outer)]
        if not level:
            return
    raise InvalidRequestError(
        f"{name} is nested more than {MAX_DOCUMENT_DEPTH} levels deep", remedy=f"make {name} flatter", param=name
    )


def _parts(value: object) -> Iterable[object]:
    match value:
        case Mapping():
            return value.values()
        case list() | tuple():
            return value
        case _:
            return ()


def _make_or_check(connection: Connection, path: Path) -> None:
    if inspect(connection).has_table(dispatcher.name):
        version = connection.execute(select(dispatcher.c.schema_version)).scalar_one()
        if version != SCHEMA_VERSION:
            raise StoreError(
                f'the job store "{path}" is of schema {version}, this version knows schema {SCHEMA_VERSION}',
                remedy="start the version that wrote it, or name another file",
            )
        return
    metadata.create_all(connection)
    connection.execute(insert(dispatcher).values(id=1, schema_version=SCHEMA_VERSION, epoch=0))


def _prepare(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    """Leaves transactions to us; a commit is on the disk when it returns, and readers do not wait for the writer."""
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """Takes the right to write at the start of a transaction that will: it cannot be lost on the way to its end."""
    is_write = connection.get_execution_options().get("is_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
