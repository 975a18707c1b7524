"""A catalog of many requests of many users, for measuring the API on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from geostudio_dagster.catalog import Plan, PlannedTask
from geostudio_dagster.catalog.schema import Request
from geostudio_dagster.demo.model import demo_bundle
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.registration import register_bundle
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.planning.plan import STEPS
from geostudio_dagster.settings import Settings

SERVER = os.environ.get(
    "GEOSTUDIO_TEST_POSTGRES_URL", "postgresql+psycopg2://postgres@127.0.0.1:5432/postgres"
)
USERS = 50
PLANNED = 4  # requests of each user that have tasks
CHUNK = 5_000


@dataclass(frozen=True)
class Known:
    """What calls name: keys of users (the last one's is an administrator), ids of planned
    requests of each user, and the id of the model."""

    keys: list[str]
    requests: list[list[str]]
    model: str

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Known:
        return cls(**json.loads(path.read_text()))


@contextmanager
def new_database(like: str | None = None) -> Iterator[str]:
    """URL of a new PostgreSQL database, a copy of ``like`` if given, dropped afterwards."""
    name = f"geostudio_bench_{uuid4().hex}"
    with administering() as server:
        server.execute(text(f"CREATE DATABASE {name}" + (f" TEMPLATE {like}" if like else "")))
    try:
        yield url_of(name)
    finally:
        with administering() as server:
            server.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@contextmanager
def administering():
    """A connection to the server that can make and drop databases."""
    engine = create_engine(make_url(SERVER), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    except OperationalError as error:
        raise SystemExit(f"bench.api: PostgreSQL at {SERVER} does not answer: {error}") from error
    finally:
        engine.dispose()


def url_of(database: str) -> str:
    return make_url(SERVER).set(database=database).render_as_string(hide_password=False)


def fill(settings: Settings, count: int) -> Known:
    """``count`` requests beside those that are planned; every user has as many."""
    with Installation.open(settings) as installation:
        bundle = demo_bundle(settings.data_folder.parent / "bundle").folder
        model = register_bundle(installation, bundle, owner="bench")
        catalog = installation.catalog
        keys = [catalog.create_key(owner(user), days=1)[1] for user in range(USERS)]
        catalog.create_key(owner(USERS - 1), days=1, admin=True)
        planned = [
            [plan(installation, model.name, user) for _ in range(PLANNED)] for user in range(USERS)
        ]
        multiply(catalog, count)
        settle(catalog)
        return Known(keys, planned, model.id)


def owner(user: int) -> str:
    return f"user{user}@example.org"


def plan(installation: Installation, model: str, user: int) -> str:
    document = {
        "model": model,
        "name": "Wetlands along the Danube",
        "location": "Vienna",
        "spatial_domain": {"urls": ["https://example.org/scene_2024-06-30.tif"]},
    }
    record = admit(document, installation.catalog, installation.settings, owner=owner(user))
    installation.catalog.record_plan(record.id, Plan(tuple(tasks(record.id)), 1, {}))
    return record.id


def tasks(request_id: str) -> Iterator[PlannedTask]:
    for number in range(3):
        yield PlannedTask(
            id=f"{request_id}-task_{number}",
            url="https://example.org/scene_2024-06-30.tif",
            date="2024-06-30",
            shard=0,
            window=None,
            scene_size=(1024, 1024),
            footprint=None,
            pixels=1024 * 1024,
            steps=STEPS,
        )


def multiply(catalog, count: int) -> None:
    """``count`` more rows like those that are there, a second apart, all of them over."""
    with catalog._write() as session:
        session.connection().exec_driver_sql("UPDATE requests SET status = 'COMPLETED'")
        columns = Request.__table__.columns
        pattern = dict(session.execute(select(*columns).limit(1)).one()._mapping)
    for start in range(0, count, CHUNK):
        rows = [
            {
                **pattern,
                "id": str(uuid4()),
                "owner": owner(number % USERS),
                "created_at": pattern["created_at"] - timedelta(seconds=number),
            }
            for number in range(start, min(start + CHUNK, count))
        ]
        with catalog._write() as session:
            session.execute(insert(Request.__table__), rows)


def settle(catalog) -> None:
    """What PostgreSQL's autovacuum does within a minute of such an import, done now."""
    with catalog._reader.connect() as connection:
        sqlite = connection.dialect.name == "sqlite"
        connection.exec_driver_sql("ANALYZE" if sqlite else "VACUUM ANALYZE")
        connection.commit()


if __name__ == "__main__":  # under the package of another version, see api_cost
    data, url, count, path = sys.argv[1:]
    fill(Settings(data_folder=Path(data), database_url=url), int(count)).save(Path(path))
