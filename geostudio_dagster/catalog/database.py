"""The catalog's connection: SQLite in WAL for one machine, PostgreSQL for several."""

from __future__ import annotations

import json
import math
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import psycopg2
from sqlalchemy import Engine, Row, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.selectable import TypedReturnsRows

from geostudio_dagster.errors import InvalidRequest

BUSY_TIMEOUT_S = 60.0
_USED_AT = "geostudio_used_at"
_FILE = "geostudio_file"
_RESTED_S = 1.0
# Opening a connection takes longer than most queries, so none is opened only for a rush: whoever
# finds all in use waits for the next one. The last one used goes first, and the others may rest.
_POOL = {"pool_size": 12, "max_overflow": 0, "pool_use_lifo": True}
_Columns = TypeVar("_Columns", bound=tuple[Any, ...])


def utc_now() -> datetime:
    """The present time, aware, UTC."""
    return datetime.now(UTC)


class Database:
    """An engine that is safe under several processes and after a fork.

    Every write is one transaction: on SQLite it holds the write lock from its first statement
    (a transaction that first reads and then wants to write could not wait for the lock), on
    PostgreSQL it locks the rows that it decides on.
    """

    def __init__(self, url: URL) -> None:
        self._url = url
        # Each with a pool of its own: writers that wait for one another keep no reader waiting.
        if url.get_backend_name() == "sqlite":
            self._reader = _sqlite(url, "BEGIN")
            self._writer = _sqlite(url, "BEGIN IMMEDIATE")
            return
        self._writer = _postgresql(url)
        # PostgreSQL gives each statement a snapshot of its own anyway (READ COMMITTED), so a
        # transaction around reads would only be two more round trips.
        self._reader = _postgresql(url, isolation_level="AUTOCOMMIT")

    @classmethod
    def open(cls, url: str) -> Self:
        """A catalog at an SQLAlchemy URL; nothing is read or made yet.

        Raises:
            InvalidRequest: not a URL of a SQLite file or of PostgreSQL through psycopg2.
        """
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise _wrong_url("is not an SQLAlchemy URL") from None
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg2")
        if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
            if parsed.database in (None, "", ":memory:"):
                raise _wrong_url("is a SQLite database in memory, which processes cannot share")
        elif parsed.drivername != "postgresql+psycopg2":
            raise _wrong_url(f"names the driver {parsed.drivername}")
        return cls(parsed)

    def migrate(self) -> None:
        """Bring the tables to this version; several processes may do so at once."""
        from geostudio_dagster.catalog.migration import migrate

        migrate(self._writer)

    def close(self) -> None:
        """Let go of every connection."""
        self._writer.dispose()
        self._reader.dispose()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with Session(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    def _rows(self, query: TypedReturnsRows[_Columns], **values: Any) -> Sequence[Row[_Columns]]:
        """All rows of one query of columns, with values for its bound parameters.

        What the API asks all the time is asked so: of columns, by a statement that is made once
        (as a constant, or by a cached function). Making it anew and filling objects of the ORM
        takes several times as long as PostgreSQL's answer.
        """
        with self._reader.connect() as connection:
            return connection.execute(query, values).all()

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session


def _wrong_url(problem: str) -> InvalidRequest:
    return InvalidRequest(
        "GEOSTUDIO_DATABASE_URL",
        problem,
        "use sqlite:////folder/catalog.db or postgresql+psycopg2://user@host/database",
    )


def _sqlite(url: URL, begin: str) -> Engine:
    engine = create_engine(
        url,
        json_serializer=to_json,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        **_POOL,
    )
    path = str(url.database)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "connect", lambda _, record: record.info.update({_FILE: _file(path)}))
    event.listen(engine, "checkout", lambda _, record, __: _see_same_file(path, record))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    reference = weakref.ref(engine)
    # No SQLite connection may cross a fork, not even one that the child leaves alone: the library
    # would believe that the child has its parent's file locks, too.
    os.register_at_fork(before=lambda: _drop_connections(reference, close=True))
    return engine


def _postgresql(url: URL, **options: Any) -> Engine:
    engine = create_engine(
        url,
        json_serializer=to_json,
        **_POOL,
        **options,
    )
    event.listen(engine, "checkout", _ask_after_rest)
    event.listen(engine, "checkin", _note_use)
    reference = weakref.ref(engine)
    # The sockets belong to the parent: the child drops them without a word to the server.
    os.register_at_fork(after_in_child=lambda: _drop_connections(reference, close=False))
    return engine


def _file(path: str) -> tuple[int, int] | None:
    """Which file lies there, if any: the numbers of its device and of itself."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _see_same_file(path: str, record: ConnectionPoolEntry) -> None:
    """A database that was put aside must not be written to: the pool opens what is there now."""
    if record.info.get(_FILE) != _file(path):
        raise DisconnectionError


def _note_use(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info[_USED_AT] = time.monotonic()


def _ask_after_rest(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    """A connection that rested may be dead; the pool takes another one then."""
    used_at = record.info.get(_USED_AT)
    if used_at is None or time.monotonic() - used_at < _RESTED_S:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        connection.rollback()
    except psycopg2.Error as error:
        raise DisconnectionError from error


def _drop_connections(reference: weakref.ref[Engine], *, close: bool) -> None:
    engine = reference()
    if engine is not None:
        engine.dispose(close=close)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin in _sqlite, not in the driver
    connection.execute("PRAGMA foreign_keys = ON")
    # An acknowledged request must outlive a power cut, too.
    connection.execute("PRAGMA synchronous = FULL")


def to_json(value: object) -> str:
    """JSON that both databases take.

    Without NaN and infinities (null instead), NUL characters and halves of characters ("?").
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_plain(value), allow_nan=False)
    return json.dumps(_plain(value)) if "\\u0000" in text or "\\ud" in text else text


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
