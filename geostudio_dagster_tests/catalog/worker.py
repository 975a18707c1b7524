"""Runs in other processes: what the tests of concurrency start."""

from __future__ import annotations

import sys
import time

from geostudio_dagster.catalog import ArtifactRecord, Catalog
from geostudio_dagster.catalog.states import CONNECTOR, POSTPROCESS, PREDICTION
from geostudio_dagster.errors import Conflict, LeaseLost


def work(catalog: Catalog, run: str, lease_s: float, keys: list[str]) -> None:
    """Do all stages of all shards; say each step that was finished."""
    for stage in (CONNECTOR, PREDICTION, POSTPROCESS):
        for key in keys:
            try:
                catalog.begin_shard_run(key, run)
            except Conflict:
                continue
            for task in catalog.claim(key, stage, run, lease_s, max_crashes=10_000):
                if not catalog.start_step(task.id, stage, run):
                    continue
                artifact = ArtifactRecord(task.id, stage, run, "image/tiff", 1, None)
                try:
                    catalog.finish_step(task.id, stage, run, [artifact])
                except LeaseLost:
                    say(f"lost {task.id} {stage}")
                else:
                    say(f"finished {task.id} {stage}")


def hold(catalog: Catalog, run: str, key: str) -> None:
    """Take the first task of a shard in hand, say so, and never end."""
    catalog.begin_shard_run(key, run)
    tasks = catalog.claim(key, CONNECTOR, run, 3600)
    catalog.start_step(tasks[0].id, CONNECTOR, run)
    say(f"holding {tasks[0].id}")
    while True:
        time.sleep(3600)


def register(catalog: Catalog) -> None:
    """Register the same models as the others do."""
    from geostudio_dagster_tests.catalog.driving import bundle

    for version in range(8):
        model = catalog.register_model(bundle("water", str(version) * 64), uri="/", owner="ann")
        say(f"{model.digest[0]} {model.version}")


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main() -> None:
    verb, url, *arguments = sys.argv[1:]
    catalog = Catalog.open(url)
    say("ready")
    sys.stdin.readline()
    if verb == "work":
        run, lease_s, *keys = arguments
        work(catalog, run, float(lease_s), keys)
    elif verb == "hold":
        hold(catalog, *arguments)
    else:
        register(catalog)
    catalog.close()


if __name__ == "__main__":
    main()
