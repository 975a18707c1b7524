"""``python -m bench.api_cost BEFORE [AFTER]``: CPU time of one call, two versions side by side.

BEFORE and AFTER (default: this one) are folders with the package, such as git worktrees. Each
version's gateway has a copy of one catalog of 100,000 requests, and one process. One client calls
one after the other; rounds alternate between the versions, and medians are told. It is CPU time
(user and system) of the gateway's and of the database's processes, so that it hardly depends on
what else the machine does.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.engine import make_url

from bench.api_catalog import Known, administering, new_database
from bench.api_load import Call, reading, serving, writing
from geostudio_dagster.settings import Settings

HERE = Path(__file__).parents[1]
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
WARM = 20


@dataclass(frozen=True)
class Version:
    """One version's gateway: a connection, the processes of gateway and database."""

    client: http.client.HTTPConnection
    gateway: int
    database: str | None

    def cpu_ms(self) -> tuple[float, float]:
        """Of the gateway, and of the database's processes that serve it."""
        return cpu_ms(family(self.gateway)), cpu_ms(backends(self.database))

    def call(self, call: Call) -> None:
        method, path, key, body = call
        headers = {"X-API-Key": key, "Content-Type": "application/json"}
        filled = body.replace("@unique@", uuid4().hex)
        self.client.request(method, path, filled or None, headers)
        answer = self.client.getresponse()
        content = answer.read()
        assert answer.status < 300, (call, answer.status, content[:300])

    def cost(self, call: Call, count: int) -> tuple[float, float]:
        """CPU time of a call in the gateway and in the database, ms."""
        self.client.close()  # it may have been idle for longer than the server waits
        for _ in range(WARM):
            self.call(call)
        before = self.cpu_ms()
        for _ in range(count):
            self.call(call)
        gateway, database = ((b - a) / count for a, b in zip(before, self.cpu_ms(), strict=True))
        return gateway, database


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.api_cost", description=__doc__)
    parser.add_argument("trees", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="postgresql")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=100, help="of a kind in one round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    trees = [*options.trees, HERE] if len(options.trees) == 1 else options.trees
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-api-")))
        first, known = filled(stack, folder / "first", trees[0].resolve(), options)
        versions = [
            stack.enter_context(running(tree.resolve(), first, folder / f"copy{number}"))
            for number, tree in enumerate(trees)
        ]
        names = " | ".join(f"{tree}: gateway | database" for tree in trees)
        print(f"| CPU time, ms of | {names} |\n|---|{'---|---|' * len(trees)}", flush=True)
        for name, call in kinds(known):
            row = [cell for item in compare(versions, call, options) for cell in item]
            print(f"| {name} | {' | '.join(f'{value:.2f}' for value in row)} |", flush=True)


def filled(
    stack: ExitStack, folder: Path, tree: Path, options: argparse.Namespace
) -> tuple[Settings, Known]:
    """A catalog as a version makes it."""
    url = stack.enter_context(new_database()) if options.database == "postgresql" else None
    settings = Settings(data_folder=folder / "data", database_url=url)
    path = folder / "known.json"
    arguments = [settings.data_folder, settings.catalog_url, options.requests, path]
    subprocess.run(
        [sys.executable, HERE / "bench" / "api_catalog.py", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(tree)},
        check=True,
    )
    return settings, Known.load(path)


@contextmanager
def running(tree: Path, first: Settings, folder: Path) -> Iterator[Version]:
    """A version's gateway on a copy of the catalog, which it brings up to itself."""
    shutil.copytree(first.data_folder, folder)
    with ExitStack() as stack:
        url = None
        if first.database_url is not None:
            url = stack.enter_context(new_database(make_url(first.catalog_url).database))
        settings = Settings(data_folder=folder, database_url=url)
        base, process = stack.enter_context(serving(settings, 1, tree))
        client = http.client.HTTPConnection(base.removeprefix("http://"), timeout=60)
        yield Version(client, process.pid, make_url(url).database if url else None)


def compare(
    versions: list[Version], call: Call, options: argparse.Namespace
) -> list[tuple[float, float]]:
    """The median cost of a call, of each version: in the gateway, in the database."""
    costs = defaultdict(list)
    for _ in range(options.rounds):
        for version in versions:
            costs[version].append(version.cost(call, options.calls))
    return [tuple(map(median, zip(*costs[version], strict=True))) for version in versions]


def family(process: int) -> list[int]:
    """A process and all that it started."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(member for child in found for member in family(int(child)))]


def backends(database: str | None) -> list[int]:
    """The processes of PostgreSQL that serve a database on this machine."""
    if database is None:
        return []
    query = text("SELECT pid FROM pg_stat_activity WHERE datname = :name")
    with administering() as server:
        return list(server.scalars(query, {"name": database}))


def cpu_ms(processes: Iterable[int]) -> float:
    total = 0
    for process in processes:
        with suppress(FileNotFoundError):  # it ended meanwhile
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total * TICK_MS


def kinds(known: Known) -> Iterator[tuple[str, Call]]:
    user = 3
    request = known.requests[user][0]
    for calls in (reading(known, user, request), writing(known, user + 1)):
        for name, (call, _) in calls.items():
            yield name, call
    admin = known.keys[-1]
    yield "25 of all", ("GET", "/v2/inference?limit=25", admin, "")
    yield "25 of all after 50,000", ("GET", "/v2/inference?limit=25&skip=50000", admin, "")


if __name__ == "__main__":
    main()
