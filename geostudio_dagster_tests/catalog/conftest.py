"""The same tests on SQLite and on PostgreSQL, each test on an empty, migrated catalog."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from geostudio_dagster.catalog import Catalog
from geostudio_dagster.catalog.schema import Base
from geostudio_dagster_tests.catalog.driving import Driver

SERVER = os.environ.get(
    "GEOSTUDIO_TEST_POSTGRES_URL", "postgresql+psycopg2://postgres@127.0.0.1:5432/postgres"
)


@pytest.fixture
def empty_postgres() -> Iterator[str]:
    """URL of a new, empty PostgreSQL database, dropped afterwards."""
    with new_database() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgres() -> Iterator[str]:
    """URL of a migrated PostgreSQL database of this test session."""
    with new_database() as url:
        catalog = Catalog.open(url)
        catalog.migrate()
        catalog.close()
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a migrated catalog without rows."""
    if request.param == "sqlite":
        path = tmp_path / "catalog.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        return f"sqlite:///{path}"
    database: str = request.getfixturevalue("migrated_postgres")
    engine = create_engine(database)
    with engine.begin() as connection:
        tables = ", ".join(f'"{table.name}"' for table in Base.metadata.sorted_tables)
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
    engine.dispose()
    return database


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new folder' / 'catalog.db'}"
    database: str = request.getfixturevalue("empty_postgres")
    return database


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    """A migrated catalog without rows."""
    opened = Catalog.open(url)
    yield opened
    opened.close()


@pytest.fixture
def drive(catalog: Catalog) -> Driver:
    """Does to the catalog what runs do."""
    return Driver(catalog)


class new_database:  # noqa: N801 - used as a function
    """A new PostgreSQL database; without a server the test is skipped."""

    def __enter__(self) -> str:
        server = make_url(SERVER)
        self.name = f"geostudio_test_{uuid4().hex}"
        self.engine = create_engine(server, isolation_level="AUTOCOMMIT")
        try:
            with self.engine.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {self.name}"))
        except OperationalError as error:
            pytest.skip(f"no PostgreSQL at {server.render_as_string()}: {error.orig}")
        return server.set(database=self.name).render_as_string(hide_password=False)

    def __exit__(self, *_: object) -> None:
        with self.engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {self.name} WITH (FORCE)"))
        self.engine.dispose()
