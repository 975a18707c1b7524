"""``python -m bench.api``: the gateway under load, on SQLite and PostgreSQL.

200 clients ask at given rates, 80 % of it reads, in a catalog of 100,000 requests of 50 users; load
tool, gateway and database share the cores. After the goal's rate, higher (or lower) ones are tried,
until 95 % of the reads are answered within 50 ms no more. Writes ``bench/out/api.json``.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median

import httpx

from bench.api_catalog import USERS, Known, fill, new_database
from bench.api_load import Load, load, mixed, require_wrk, serving
from geostudio_dagster.settings import Settings

OUT = Path(__file__).with_name("out")
MANY_URLS = 10_000
READS_MS = 50.0
STEP = 100
MOST_STEPS = 5
SETTLE_S = 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.api", description=__doc__)
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=300, help="calls a second of the goal")
    parser.add_argument("--seconds", type=int, default=20, help="at that rate")
    parser.add_argument("--step-seconds", type=int, default=8, help="at each other rate")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    require_wrk()
    found = {name: measure(name, options) for name in options.databases.split(",")}
    machine = {"cores": len(os.sched_getaffinity(0)), "load_average": os.getloadavg()}
    date = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    OUT.mkdir(exist_ok=True)
    document = {"date": date, "machine": machine, "options": vars(options), **found}
    (OUT / "api.json").write_text(json.dumps(document, indent=2) + "\n")
    print(f"\n{OUT / 'api.json'}")


def measure(database: str, options: argparse.Namespace) -> dict[str, object]:
    print(f"\n### {database}, {options.workers} workers, {options.requests} requests", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-api-")))
        url = stack.enter_context(new_database()) if database == "postgresql" else None
        settings = Settings(data_folder=folder / "data", database_url=url)
        known = fill(settings, options.requests)
        base, _ = stack.enter_context(serving(settings, options.workers))
        return {
            "pages_ms": pages(base, known, options.requests),
            "post_s": large_post(base, known),
            "rates": rates(base, folder, known, options),
        }


def pages(base: str, known: Known, count: int) -> dict[str, list[float]]:
    print("\n| page of a list | median, ms | largest of 20, ms |\n|---|---|---|")
    mine = count // USERS
    asked = {
        "the first 25 of a user": (0, "limit=25"),
        f"25 of a user after {mine // 2}": (0, f"limit=25&skip={mine // 2}"),
        "25 of a user by a text": (0, "limit=25&q=danube"),
        "1000 of a user": (0, "limit=1000"),
        "25 of all, for an administrator": (-1, "limit=25"),
        f"25 of all after {count // 2}": (-1, f"limit=25&skip={count // 2}"),
    }
    found = {}
    with httpx.Client(base_url=base, timeout=60) as client:
        for name, (user, query) in asked.items():
            headers = {"X-API-Key": known.keys[user]}
            times = [
                timed(lambda q=query, h=headers: client.get(f"/v2/inference?{q}", headers=h), 200)
                * 1000
                for _ in range(20)
            ]
            found[name] = [round(value, 1) for value in times]
            print(f"| {name} | {median(times):.1f} | {max(times):.1f} |", flush=True)
    return found


def large_post(base: str, known: Known) -> list[float]:
    times = []
    for number in range(5):
        urls = [f"https://example.org/{number}/scene_{n}_2024-06-30.tif" for n in range(MANY_URLS)]
        body = {"model_id": known.model, "spatial_domain": {"urls": urls}, "temporal_domain": []}
        headers = {"X-API-Key": known.keys[0]}
        with httpx.Client(base_url=base, headers=headers, timeout=60) as client:
            times.append(timed(lambda c=client, b=body: c.post("/v2/inference", json=b), 201))
    figures = f"{median(times):.2f} s median, {max(times):.2f} s at most"
    print(f"\nPOST of {MANY_URLS} URLs: {figures}, of 5", flush=True)
    return [round(value, 3) for value in times]


def timed(call, status: int) -> float:
    start = time.perf_counter()
    answer = call()
    seconds = time.perf_counter() - start
    assert answer.status_code == status, answer.text[:500]
    return seconds


def rates(
    base: str, folder: Path, known: Known, options: argparse.Namespace
) -> list[dict[str, object]]:
    """The goal's rate, then others as long as they tell something new."""
    print("\n| asked per second | | answered | p50, ms | p95, ms | p99, ms | errors | sent late |")
    print("|---|---|---|---|---|---|---|---|")
    mix = mixed(known)
    load(base, folder, mix, options.rate / 3, SETTLE_S)  # whatever is done once is done now
    found, holding = [], 0.0
    for rate in wanted(options.rate, found):
        seconds = options.seconds if rate == options.rate else options.step_seconds
        measured = load(base, folder, mix, rate, seconds)
        show(rate, measured)
        if holds(measured):
            holding = max(holding, rate)
        found.append({"rate": rate, "holds": holds(measured)} | as_json(measured))
    for line in refusals(base):
        print(line, flush=True)
    print(f"\nReads within {READS_MS:.0f} ms (p95), without an error: up to {holding:.0f} a second")
    return found


def refusals(base: str) -> list[str]:
    """What the gateway counted of answers that are none, whatever the load tool saw."""
    lines = httpx.get(f"{base}/metrics", timeout=60).text.splitlines()
    return [line for line in lines if re.search(r'_requests_total.*status="[45]', line)]


def wanted(goal: float, found: list[dict[str, object]]) -> Iterator[float]:
    """The goal; then up while it holds, or down until it does."""
    yield goal
    step = STEP if found[-1]["holds"] else -STEP / 2
    rate = goal
    for _ in range(MOST_STEPS):
        rate += step
        if rate <= 0:
            return
        yield rate
        if found[-1]["holds"] != (step > 0):
            return


def holds(measured: dict[str, Load]) -> bool:
    errors = sum(item.errors for item in measured.values())
    return errors == 0 and measured["reads"].p95 < READS_MS


def show(rate: float, measured: dict[str, Load]) -> None:
    for name, item in measured.items():
        times = f"{item.p50:.1f} | {item.p95:.1f} | {item.p99:.1f}"
        late = f"{item.late} (at most {item.latest:.0f} ms)"
        row = f"| {rate:.0f} | {name} | {item.per_second:.0f} | {times} | {item.errors} | {late} |"
        print(row, flush=True)


def as_json(measured: dict[str, Load]) -> dict[str, object]:
    return {name: asdict(item) for name, item in measured.items()}


if __name__ == "__main__":
    main()
