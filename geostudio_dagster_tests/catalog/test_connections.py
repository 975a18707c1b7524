"""Connections to the catalog that die while nobody uses them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

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


def _open_files(path: Path) -> int:
    """How many of this process's files are this one."""
    links = Path("/proc/self/fd").iterdir()
    return sum(link.is_symlink() and link.samefile(path) for link in links if link.exists())


def test_sqlite_keeps_its_connection_but_not_over_a_fork(
    sqlite_template: Path, tmp_path: Path
) -> None:
    path = tmp_path / "catalog.db"
    shutil.copy(sqlite_template, path)
    catalog = Catalog.open(f"sqlite:///{path}")
    for _ in range(3):
        assert catalog.requests() == []
        assert _open_files(path) == 1
    child = os.fork()
    if child == 0:
        try:
            inherited = _open_files(path)
            readable = catalog.requests() == []
            os._exit(0 if inherited == 0 and readable else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert catalog.requests() == []
    catalog.close()
    assert _open_files(path) == 0


def test_readers_do_not_wait_for_the_connections_of_writers(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}.items():
        monkeypatch.setitem(database._POOL, name, value)
    catalog = Catalog.open(url)
    _, key = catalog.create_key("ann@example.org", days=1)
    with catalog._write() as session:
        session.execute(text("SELECT 1"))  # takes the only connection that writes
        assert catalog.requests() == []
        # That it was used cannot be noted just now, which is no reason to refuse the key.
        viewer = catalog.viewer_of_key(key)
    assert viewer is not None and viewer.email == "ann@example.org"
    catalog.close()


def test_an_sqlite_file_that_was_exchanged_is_opened_anew(
    sqlite_template: Path, tmp_path: Path
) -> None:
    path = tmp_path / "catalog.db"
    shutil.copy(sqlite_template, path)
    catalog = Catalog.open(f"sqlite:///{path}")
    catalog.create_key("ann@example.org", days=1)
    path.rename(tmp_path / "aside.db")
    for part in ("-wal", "-shm"):
        path.with_name(f"catalog.db{part}").rename(tmp_path / f"aside.db{part}")
    shutil.copy(sqlite_template, path)
    assert catalog.keys() == []
    catalog.create_key("bob@example.org", days=1)
    aside = Catalog.open(f"sqlite:///{tmp_path / 'aside.db'}")
    assert [key.email for key in aside.keys(None)] == ["ann@example.org"]
    aside.close()
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
