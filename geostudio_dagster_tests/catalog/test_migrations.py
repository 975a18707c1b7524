from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.command import downgrade, upgrade
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, select, text

from geostudio_dagster.catalog import Catalog
from geostudio_dagster.catalog.api_schema import ModelCard
from geostudio_dagster.catalog.migration import SCRIPTS
from geostudio_dagster.catalog.schema import Base, Request
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster_tests.catalog.driving import Driver

MIGRATE = (
    "import sys; from geostudio_dagster.catalog import Catalog; Catalog.open(sys.argv[1]).migrate()"
)


def test_migrations_make_the_tables_that_the_models_describe(empty_url: str) -> None:
    catalog = Catalog.open(empty_url)
    catalog.migrate()
    engine = create_engine(empty_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()
    catalog.close()


def test_migrating_again_keeps_what_is_there(empty_url: str) -> None:
    catalog = Catalog.open(empty_url)
    catalog.migrate()
    with catalog._write() as session:
        session.connection().exec_driver_sql(
            "INSERT INTO run_leases VALUES ('a', '2026-01-01 00:00:00.000000')"
        )
    catalog.migrate()
    assert catalog.run_lease("a") is not None
    catalog.close()


def test_a_downgrade_leaves_no_table(empty_url: str) -> None:
    catalog = Catalog.open(empty_url)
    catalog.migrate()
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with catalog._writer.begin() as connection:
        config.attributes["connection"] = connection
        downgrade(config, "base")
    engine = create_engine(empty_url)
    assert set(inspect(engine).get_table_names()) - {"alembic_version"} == set()
    engine.dispose()
    catalog.close()


OLD_ROWS = (
    """INSERT INTO models VALUES ('5b0c3b52-aa', 'flood_U_net', 1, 'd1', '/a',
       '{"description": "Old"}', 'cli', '2026-01-01 00:00:00')""",
    """INSERT INTO models VALUES ('6b0c3b52-bb', 'flood_U_net', 2, 'd2', '/b', '{}', 'cli',
       '2026-01-02 00:00:00')""",
    """INSERT INTO requests (id, model_id, spec, owner, status, priority, n_tasks, estimate,
       cancel_requested, publish_attempt, publish_failures, created_at, updated_at)
       VALUES ('r1', '5b0c3b52-aa', '{"name": "First", "location": null}', 'cli', 'COMPLETED', 0,
       0, '{}', FALSE, 0, 0, '2026-01-03 00:00:00', '2026-01-03 00:00:00')""",
)


def test_what_was_there_before_the_api_is_seen_through_it(empty_url: str) -> None:
    catalog = Catalog.open(empty_url)
    if empty_url.startswith("sqlite"):
        Path(empty_url.removeprefix("sqlite:///")).parent.mkdir()
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with catalog._writer.begin() as connection:
        config.attributes["connection"] = connection
        upgrade(config, "0001")
        for statement in OLD_ROWS:
            connection.execute(text(statement))
    catalog.migrate()
    with catalog._read() as session:
        cards = session.scalars(select(ModelCard).order_by(ModelCard.version)).all()
        assert [(card.id, card.model_id, card.internal_name) for card in cards] == [
            ("5b0c3b52-aa", "5b0c3b52-aa", "flood-u-net-v1-5b0c3b52"),
            ("6b0c3b52-bb", "6b0c3b52-bb", "flood-u-net-v2-6b0c3b52"),
        ]
        assert [card.latest for card in cards] == [False, True]
        assert all(card.sharable and card.status == "COMPLETED" for card in cards)
        assert cards[0].details["description"] == "Old"
        request = session.get_one(Request, "r1")
        assert (request.name, request.location, request.card_id) == ("First", "", "5b0c3b52-aa")
        assert (request.saved, request.deleted_at) == (False, None)
    catalog.close()


def test_speeds_by_an_older_rule_are_forgotten(empty_url: str) -> None:
    catalog = Catalog.open(empty_url)
    catalog.migrate()
    drive = Driver(catalog)
    model = drive.model()
    drive.settled(2, 1)
    assert catalog.prediction_speed(model.id) == pytest.approx(0.002)
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with catalog._writer.begin() as connection:
        config.attributes["connection"] = connection
        downgrade(config, "0004")
    catalog.migrate()
    assert catalog.prediction_speed(model.id) is None
    drive.settled(2, 1)
    assert catalog.prediction_speed(model.id) == pytest.approx(0.002)
    catalog.close()


def test_processes_that_start_at_once_migrate_once(empty_url: str) -> None:
    command = [sys.executable, "-c", MIGRATE, empty_url]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
    catalog = Catalog.open(empty_url)
    assert catalog.requests() == []
    catalog.close()


def test_sqlite_is_in_wal_with_foreign_keys(tmp_path: Path) -> None:
    catalog = Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
    catalog.migrate()
    with catalog._read() as session:
        connection = session.connection()
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000


def test_the_catalog_imports_nothing_heavy() -> None:
    program = (
        "import sys, geostudio_dagster.catalog;"
        "print({'torch', 'dagster', 'alembic', 'rasterio'} & set(sys.modules))"
    )
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert output.strip() == "set()"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("catalog.db", "is not an SQLAlchemy URL"),
        ("sqlite://", "is a SQLite database in memory, which processes cannot share"),
        ("sqlite:///:memory:", "is a SQLite database in memory, which processes cannot share"),
        ("mysql://root@localhost/x", "names the driver mysql"),
        ("postgresql+psycopg://localhost/x", "names the driver postgresql+psycopg"),
    ],
)
def test_other_databases_are_refused(url: str, problem: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        Catalog.open(url)
    assert str(refusal.value) == (
        f"GEOSTUDIO_DATABASE_URL: {problem}; use sqlite:////folder/catalog.db or "
        "postgresql+psycopg2://user@host/database."
    )


def test_postgresql_needs_no_driver_in_its_url() -> None:
    catalog = Catalog.open("postgresql://someone@localhost/x")
    assert catalog._url.drivername == "postgresql+psycopg2"
