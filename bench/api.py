"""``python -m bench.api``: the gateway under load, on SQLite and PostgreSQL.

wrk calls from processes of its own: 160 clients that read and 40 that write, each with a pause
after its answer, so that together they ask 300 times a second. The catalog holds 100,000
requests of 50 users.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from uuid import uuid4

import httpx
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.engine import make_url

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
SCRIPT = Path(__file__).with_name("api.lua")
USERS = 50
READERS, WRITERS = 160, 40
MANY_URLS = 10_000
CHUNK = 5_000


@dataclass(frozen=True)
class Load:
    """What one wrk measured, milliseconds."""

    calls: int
    seconds: float
    p50: float
    p95: float
    p99: float
    refused: int
    broken: int

    def row(self, name: str) -> str:
        rate = self.calls / self.seconds
        figures = f"{self.p50:.1f} | {self.p95:.1f} | {self.p99:.1f}"
        return f"| {name} | {rate:.0f} | {figures} | {self.refused + self.broken} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.api", description=__doc__)
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rate", type=float, default=300)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for database in options.databases.split(","):
        measure(database, options)


def measure(database: str, options: argparse.Namespace) -> None:
    print(f"\n### {database}, {options.workers} workers, {options.requests} requests", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-api-")))
        url = stack.enter_context(new_database()) if database == "postgresql" else None
        settings = Settings(data_folder=folder / "data", database_url=url)
        installation = stack.enter_context(Installation.open(settings))
        model = register_bundle(installation, demo_bundle(folder / "bundle").folder, owner="bench")
        keys = [
            installation.catalog.create_key(f"user{n}@example.org", days=1)[1] for n in range(USERS)
        ]
        known = fill(installation, model.name, options.requests)
        base = stack.enter_context(serving(settings, options.workers))
        measure_pages(base, keys, options.requests)
        measure_large_post(base, keys[0], model.id)
        reads, writes = calls(known, keys, model.id)
        measure_load(base, folder, reads, writes, options)


@contextmanager
def new_database() -> Iterator[str]:
    name = f"geostudio_bench_{uuid4().hex}"
    engine = create_engine(make_url(SERVER), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(SERVER).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def fill(installation: Installation, model: str, count: int) -> dict[int, list[str]]:
    """``count`` requests, some of them planned; the ids of those by the number of their user."""
    catalog, known = installation.catalog, {}
    for user in range(USERS):
        known[user] = []
        for _ in range(4):
            document = {
                "model": model,
                "name": "Wetlands along the Danube",
                "location": "Vienna",
                "spatial_domain": {"urls": ["https://example.org/scene_2024-06-30.tif"]},
            }
            owner = f"user{user}@example.org"
            record = admit(document, catalog, installation.settings, owner=owner)
            catalog.record_plan(record.id, Plan(tuple(tasks(record.id)), 1, {}))
            known[user].append(record.id)
    catalog.create_key(f"user{USERS - 1}@example.org", days=1, admin=True)
    with catalog._write() as session:
        session.connection().exec_driver_sql("UPDATE requests SET status = 'COMPLETED'")
        columns = Request.__table__.columns
        pattern = dict(session.execute(select(*columns).limit(1)).one()._mapping)
    for start in range(0, count, CHUNK):
        rows = [
            {
                **pattern,
                "id": str(uuid4()),
                "owner": f"user{number % USERS}@example.org",
                "created_at": pattern["created_at"] - timedelta(seconds=number),
            }
            for number in range(start, min(start + CHUNK, count))
        ]
        with catalog._write() as session:
            session.execute(insert(Request.__table__), rows)
    with catalog._writer.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
        connection.commit()
    return known


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(settings: Settings, workers: int) -> Iterator[str]:
    environment = {
        **os.environ,
        "GEOSTUDIO_DATA_FOLDER": str(settings.data_folder),
        "GEOSTUDIO_DATABASE_URL": settings.catalog_url,
    }
    port = free_port()
    arguments = ["gateway", "--port", str(port), "--workers", str(workers), "--no-first-key"]
    process = subprocess.Popen(
        [sys.executable, "-m", "geostudio_dagster", *arguments], env=environment
    )
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{base}/health/livez", timeout=2).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield base
    finally:
        process.terminate()
        process.wait(30)


def measure_pages(base: str, keys: list[str], count: int) -> None:
    print("\n| page of a list | median, ms | largest of 20, ms |\n|---|---|---|")
    mine = count // USERS
    pages = {
        "the first 25 of a user": "limit=25",
        f"25 of a user after {mine // 2}": f"limit=25&skip={mine // 2}",
        "25 of a user by a text": "limit=25&q=danube",
        "1000 of a user": "limit=1000",
        "25 of all, for an administrator": "limit=25",
        f"25 of all after {count // 2}": f"limit=25&skip={count // 2}",
    }
    with httpx.Client(base_url=base, timeout=60) as client:
        for name, query in pages.items():
            headers = {"X-API-Key": keys[-1] if "of all" in name else keys[0]}
            times = []
            for _ in range(20):
                start = time.perf_counter()
                client.get(f"/v2/inference?{query}", headers=headers).raise_for_status()
                times.append((time.perf_counter() - start) * 1000)
            print(f"| {name} | {median(times):.1f} | {max(times):.1f} |", flush=True)


def measure_large_post(base: str, key: str, model_id: str) -> None:
    times = []
    for number in range(5):
        urls = [f"https://example.org/{number}/scene_{n}_2024-06-30.tif" for n in range(MANY_URLS)]
        body = {"model_id": model_id, "spatial_domain": {"urls": urls}, "temporal_domain": []}
        start = time.perf_counter()
        answer = httpx.post(
            f"{base}/v2/inference", json=body, headers={"X-API-Key": key}, timeout=60
        )
        times.append(time.perf_counter() - start)
        assert answer.status_code == 201, answer.text[:500]
    figures = f"{median(times):.2f} s median, {max(times):.2f} s at most"
    print(f"\nPOST of {MANY_URLS} URLs: {figures}, of 5", flush=True)


def calls(
    known: dict[int, list[str]], keys: list[str], model_id: str
) -> tuple[list[str], list[str]]:
    """Lines for the script: what is read, and what is written."""
    generator = random.Random(1)
    reads, writes = [], []
    for user, key in enumerate(keys):
        request = generator.choice(known[user])
        for path, share in (
            (f"/v2/inference/{request}", 8),
            (f"/v2/inference/{request}/tasks", 4),
            ("/v2/inference?limit=25&skip=0", 4),
            ("/v2/models?limit=25", 2),
            ("/v2/auth/api-keys", 2),
        ):
            reads += [f"GET\t{path}\t{key}\t"] * share
        wish = {
            "model_id": model_id,
            "spatial_domain": {"urls": ["https://example.org/a@unique@_2024-06-30.tif"]},
            "temporal_domain": [],
        }
        writes += [f"POST\t/v2/inference\t{key}\t{json.dumps(wish)}"] * 3
        group = json.dumps({"name": f"group {user} @unique@"})
        writes.append(f"POST\t/v2/groups\t{key}\t{group}")
    return reads, writes


def measure_load(
    base: str, folder: Path, reads: list[str], writes: list[str], options: argparse.Namespace
) -> None:
    kinds = {"reads": (reads, READERS, 0.8), "writes": (writes, WRITERS, 0.2)}
    started = {}
    for seed, (name, (lines, clients, share)) in enumerate(kinds.items()):
        (folder / name).write_text("\n".join(lines) + "\n")
        environment = {
            **os.environ,
            "API_CALLS": str(folder / name),
            "API_PAUSE_MS": str(1000 * clients / (options.rate * share)),
            "API_SEED": str(seed + 1),
        }
        command = ["wrk", "-t1", f"-c{clients}", f"-d{options.seconds}s", "--timeout", "30s"]
        started[name] = subprocess.Popen(
            [*command, "-s", str(SCRIPT), base], env=environment, stdout=subprocess.PIPE, text=True
        )
    print("\n| 200 clients | per second | p50, ms | p95, ms | p99, ms | errors |")
    print("|---|---|---|---|---|---|")
    for name, process in started.items():
        output = process.communicate()[0]
        line = next(item for item in output.splitlines() if item.startswith("RESULT"))
        count, micros, p50, p95, p99, refused, broken = map(int, line.split("\t")[1:])
        load = Load(count, micros / 1e6, p50 / 1e3, p95 / 1e3, p99 / 1e3, refused, broken)
        print(load.row(name), flush=True)


if __name__ == "__main__":
    main()
