"""Bringing a catalog's tables to the version of this package."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from geostudio_dagster.catalog.database import BUSY_TIMEOUT_S

SCRIPTS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 4_711_202_611  # any number, the same in every version of this package


def migrate(engine: Engine) -> None:
    """Apply the migrations that are missing, in one transaction, one process at a time."""
    if engine.dialect.name == "sqlite":
        _migrate_sqlite(engine)
        return
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        _upgrade(connection)


def _migrate_sqlite(engine: Engine) -> None:
    path = Path(str(engine.url.database)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _file_lock(path.with_name(f"{path.name}.lock")):
        # WAL is a property of the file; the switch needs the database for itself.
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as bare:
            bare.execute("PRAGMA journal_mode = WAL")
        with engine.begin() as connection:
            _upgrade(connection)


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _upgrade(connection: Connection) -> None:
    config = Config()
    # ConfigParser takes "%" for interpolation.
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    head = ScriptDirectory.from_config(config).get_current_head()
    if MigrationContext.configure(connection).get_current_revision() == head:
        return
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
