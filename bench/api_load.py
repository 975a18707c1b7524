"""The gateway as its command starts it, and calls of many clients at a given rate (wrk).

wrk, since it costs about 0.05 ms of the cores that it shares with what it measures, where Python's
load tools (Locust, an asyncio client) cost as much as the gateway itself. It has no rate of its own
(wrk2 has, but no distribution packages it): api.lua paces it.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.api_catalog import Known
from geostudio_dagster.settings import Settings

SCRIPT = Path(__file__).with_name("api.lua")
READERS, WRITERS = 160, 40
READ_SHARE = 0.8


@dataclass(frozen=True)
class Load:
    """What one wrk measured: milliseconds; calls refused (4xx, 5xx), broken, sent late."""

    calls: int
    seconds: float
    p50: float
    p95: float
    p99: float
    refused: int
    broken: int
    late: int
    latest: float

    @property
    def per_second(self) -> float:
        return self.calls / self.seconds

    @property
    def errors(self) -> int:
        return self.refused + self.broken

    @classmethod
    def of(cls, output: str) -> Load:
        line = next(item for item in output.splitlines() if item.startswith("RESULT"))
        count, micros, p50, p95, p99, refused, broken, late, latest = map(int, line.split("\t")[1:])
        times = (p50 / 1e3, p95 / 1e3, p99 / 1e3)
        return cls(count, micros / 1e6, *times, refused, broken, late, latest / 1e3)


def require_wrk() -> None:
    if shutil.which("wrk") is None:
        raise SystemExit("bench.api: wrk is missing; install it, such as with: apt install wrk")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    settings: Settings, workers: int, tree: Path | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of a gateway, of the package in ``tree`` (default: the installed one)."""
    environment = {
        **os.environ,
        "GEOSTUDIO_DATA_FOLDER": str(settings.data_folder),
        "GEOSTUDIO_DATABASE_URL": settings.catalog_url,
    }
    port = free_port()
    arguments = ["gateway", "--port", str(port), "--workers", str(workers), "--no-first-key"]
    process = subprocess.Popen(
        [sys.executable, "-m", "geostudio_dagster", *arguments], env=environment, cwd=tree
    )
    base = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{base}/health/livez")
        yield base, process
    finally:
        process.terminate()
        process.wait(30)


def wait_for(address: str) -> None:
    for _ in range(600):
        with suppress(httpx.HTTPError):
            httpx.get(address, timeout=2).raise_for_status()
            return
        time.sleep(0.1)
    raise SystemExit(f"bench.api: {address} does not answer")


Call = tuple[str, str, str, str]  # method, path, key, body


def reading(known: Known, user: int, request: str) -> dict[str, tuple[Call, int]]:
    """The kinds of reading calls of a user, each with its share."""
    paths = {
        "a request": (f"/v2/inference/{request}", 8),
        "its tasks": (f"/v2/inference/{request}/tasks", 4),
        "25 requests": ("/v2/inference?limit=25&skip=0", 4),
        "models": ("/v2/models?limit=25", 2),
        "keys": ("/v2/auth/api-keys", 2),
    }
    key = known.keys[user]
    return {name: (("GET", path, key, ""), share) for name, (path, share) in paths.items()}


def writing(known: Known, user: int) -> dict[str, tuple[Call, int]]:
    """The kinds of writing calls; ``@unique@`` becomes a new number with each."""
    wish = {
        "model_id": known.model,
        "spatial_domain": {"urls": ["https://example.org/a@unique@_2024-06-30.tif"]},
        "temporal_domain": [],
    }
    group = {"name": f"group {user} @unique@"}
    key = known.keys[user]
    return {
        "a new request": (("POST", "/v2/inference", key, json.dumps(wish)), 3),
        "a new group": (("POST", "/v2/groups", key, json.dumps(group)), 1),
    }


def mixed(known: Known) -> dict[str, list[Call]]:
    """Reading and writing calls of all users, each as often as its share says."""
    generator = random.Random(1)
    reads, writes = [], []
    for user, requests in enumerate(known.requests):
        for call, share in reading(known, user, generator.choice(requests)).values():
            reads += [call] * share
        for call, share in writing(known, user).values():
            writes += [call] * share
    return {"reads": reads, "writes": writes}


def load(
    base: str, folder: Path, mix: Mapping[str, Sequence[Call]], rate: float, seconds: int
) -> dict[str, Load]:
    """200 clients (of which none rests for long) ask ``rate`` times a second, 80 % of it reads."""
    kinds = {"reads": (READERS, READ_SHARE), "writes": (WRITERS, 1 - READ_SHARE)}
    started = {}
    for name, (most, share) in kinds.items():
        # At low rates fewer: a server closes connections that rest for some seconds.
        clients = min(most, max(1, round(rate * share)))
        lines = folder / name
        lines.write_text("".join("\t".join(call) + "\n" for call in mix[name]))
        environment = {
            **os.environ,
            "API_CALLS": str(lines),
            "API_PER_SECOND": str(rate * share),
            "API_SEED": str(secrets.randbelow(2**31)),  # no name twice in one catalog
        }
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s"]
        started[name] = subprocess.Popen(
            [*command, "-s", str(SCRIPT), base], env=environment, stdout=subprocess.PIPE, text=True
        )
    return {name: Load.of(process.communicate()[0]) for name, process in started.items()}
