"""Signs of life of runs."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor, wait

from sqlalchemy import insert, text

from geostudio_dagster.catalog import Catalog
from geostudio_dagster.catalog.schema import RunLease

NOW = dt.datetime(2024, 6, 30, 12, tzinfo=dt.UTC)


def test_the_first_signs_of_life_of_two_processes_meet(migrated_postgres: str) -> None:
    catalog = Catalog.open(migrated_postgres)
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with ThreadPoolExecutor(1) as pool:
        with catalog._write() as other:
            other.execute(insert(RunLease).values(run_id="two processes", lease_until=NOW))
            beat = pool.submit(catalog.keep_alive, "two processes", 30, NOW)
            while not beat.done():  # until it waits for the one who was first
                with catalog._read() as session:
                    if session.scalar(waits):
                        break
                wait([beat], timeout=0.01)
        beat.result(timeout=60)
    assert catalog.run_lease("two processes") == NOW + dt.timedelta(seconds=30)
    catalog.close()
