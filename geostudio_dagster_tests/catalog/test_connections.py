"""Connections to the catalog that die while nobody uses them."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text

from geostudio_dagster.catalog import Catalog, database


def test_a_connection_that_died_at_rest_is_replaced(
    migrated_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_RESTED_S", 0.0)
    catalog = Catalog.open(migrated_postgres)
    with catalog._read() as session:
        process = session.scalar(text("SELECT pg_backend_pid()"))
    other = create_engine(migrated_postgres, isolation_level="AUTOCOMMIT")
    with other.connect() as connection:
        # With a time to wait: a signal alone may come after our next statement.
        ended = text("SELECT pg_terminate_backend(:pid, 60000)")
        assert connection.scalar(ended, {"pid": process})
    other.dispose()
    with catalog._read() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != process
    catalog.close()


def test_reads_leave_no_transaction_open(migrated_postgres: str) -> None:
    catalog = Catalog.open(migrated_postgres)
    with catalog._read() as session:
        session.execute(text("SELECT 1"))
        state = text("SELECT now() = statement_timestamp()")
        assert session.scalar(state)  # no transaction that began before
    with catalog._write() as session:
        session.execute(text("SELECT pg_sleep(0.01)"))
        assert not session.scalar(text("SELECT now() = statement_timestamp()"))
    catalog.close()
